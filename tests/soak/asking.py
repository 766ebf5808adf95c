"""Those who ask: every answer is judged token by token."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import Any

import openai

from tests.soak import questions, wishes
from tests.soak.judge import Parts
from tests.soak.names import OWN, SHARED, TENANTS
from tests.soak.questions import Piece, Question
from tests.soak.tally import LEFT, REFUSED, RIGHT, Deed, Lost, Wrong
from tests.soak.world import World
from vllm_palign.persona import Scope

REVOKED_SECONDS = 20
"""A revoked key stops within seconds; this many on a busy machine."""


def question(world: World, rng: random.Random) -> Question:
    prompt = rng.choice(world.prompts)
    tokens = rng.randint(24, 60) if rng.random() < 0.1 else rng.randint(1, 6)
    count = rng.randint(2, 3) if rng.random() < 0.15 and prompt.endpoint != "responses" else 1
    return Question(prompt, tokens, stream=rng.random() < 0.4, count=count)


async def ask(world: World, rng: random.Random, deed: Deed) -> str:
    """A proper question, of nobody in one case of five."""
    tenant = rng.choice(TENANTS)
    wish = wishes.NOBODY if rng.random() < 0.2 else wishes.choose(rng, known(world, tenant, rng))
    asked = question(world, rng)
    deed.kind = _kind(asked)
    return await put_question(world, rng, tenant, wish, asked)


async def ask_and_leave(world: World, rng: random.Random, deed: Deed) -> str:
    """The client closes its connection, in the middle of a stream or before an answer begins."""
    tenant = rng.choice(TENANTS)
    wish = wishes.choose(rng, known(world, tenant, rng))
    asked = replace(question(world, rng), tokens=60)
    if rng.random() < 0.6:
        deed.kind = "leaves while streaming"
        asked = replace(asked, stream=True, leave_after=rng.randint(1, 20))
        return await put_question(world, rng, tenant, wish, asked)
    deed.kind = "leaves while waiting"
    asked = replace(asked, stream=False)
    try:
        async with asyncio.timeout(rng.uniform(0.001, 0.3)):
            return await put_question(world, rng, tenant, wish, asked)
    except TimeoutError:
        return LEFT


def known(world: World, tenant: str, rng: random.Random) -> list[str]:
    """Names that hold something now; in one case of ten also those that do not."""
    if rng.random() < 0.1:
        return [*OWN, *SHARED]
    held = [name for name in OWN if world.names.of[tenant, name].holds is not None]
    return [*held, *SHARED, f"only-{tenant}", f"always-{tenant}"]


async def put_question(
    world: World, rng: random.Random, tenant: str, wish: wishes.Wish, asked: Question
) -> str:
    guest = world.key(rng, tenant)
    start = time.monotonic()
    try:
        answer = await send(world, guest.key, asked, wish.fields)
    except openai.APIStatusError as error:
        now = time.monotonic()
        if error.status_code == 401 and guest.revoked <= now:
            return REFUSED
        missing = any(
            None in world.names.possible(tenant, name, start, now) for name in wish.weights
        )
        if error.status_code == 404 and error.code == "persona_not_found" and missing:
            return REFUSED
        raise Wrong(f"{wish.fields} of {tenant}: {error.status_code} {error.body}") from None
    if start > guest.revoked + REVOKED_SECONDS:
        raise Wrong(f"a key answers {start - guest.revoked:.0f} s after it was revoked")
    parts = wish.parts(answer.header, world.names, tenant, start, time.monotonic())
    if answer.generated not in (None, asked.tokens):
        raise Lost(f"{answer.generated} tokens generated, {asked.tokens} wanted")
    for pieces in answer.choices.values():
        await _check(world, asked, answer.left, pieces, parts, wish.scope)
    if not answer.left and len(answer.choices) != asked.count:
        raise Lost(f"{len(answer.choices)} answers of {asked.count}")
    effect = {0: "nobody", 1: "one"}.get(len(wish.weights), "blend")
    world.tally.features[f"effect: {effect}"] += 1
    if wish.weights:
        world.tally.features[f"asked by: {wish.way}"] += 1
        world.tally.features[f"scope: {wish.scope}"] += 1
    if asked.count > 1:
        world.tally.features["n > 1"] += 1
    return LEFT if answer.left else RIGHT


async def _check(
    world: World,
    asked: Question,
    left: bool,
    pieces: list[Piece],
    parts: Parts,
    scope: Scope = "answers",
) -> None:
    """Raises Wrong; Lost if tokens are missing that no endpoint leaves out."""
    ids, shown = asked.prompt.ids, sum(len(piece.tokens) for piece in pieces)
    # vLLM's responses leave out what has no text, such as half a character: chunks, or the whole answer.
    gaps = asked.prompt.endpoint == "responses" and (asked.stream or not pieces)
    if gaps and shown < asked.tokens:
        hidden = await world.judge.check_with_gaps(ids, pieces, parts, asked.tokens, left, scope)
        world.tally.features["responses with tokens left out"] += hidden > 0
    elif left or shown == asked.tokens:
        await world.judge.check(ids, pieces, parts, scope)
    else:
        raise Lost(f"{shown} tokens of {asked.tokens}")


async def send(world: World, key: str, asked: Question, fields: dict[str, Any]) -> questions.Answer:
    """Raises openai.APIStatusError for a refusal, Lost for what only a kill explains."""
    try:
        return await questions.ask(world.servers.client(key), asked, fields)
    except openai.APIStatusError as error:
        if error.status_code >= 500:
            raise Lost(f"{error.status_code}: {error.body}") from error
        raise
    except openai.APIError as error:
        raise Lost(repr(error)) from error


VAIN: dict[str, tuple[dict[str, Any], int, str]] = {
    "nobody's persona": ({"persona": "nobody"}, 404, "persona_not_found"),
    "another tenant's persona": ({"persona": "OTHER"}, 404, "persona_not_found"),
    "another tenant's persona in a blend": (
        {"persona": {"mix": {"OTHER": 0.5, "lent": 0.5}}}, 404, "persona_not_found"
    ),
    "another tenant's persona as a model": ({"model": "base@OTHER"}, 404, "persona_not_found"),
    "too strong": ({"persona": {"id": "lent", "strength": -3.01}}, 400, "persona_invalid"),
    "too strong a blend": ({"persona": {"mix": {"lent": 2, "open": -1.5}}}, 400, "persona_invalid"),
    "two that disagree": ({"persona": "lent", "model": "base@open"}, 400, "persona_conflict"),
    "two strengths": (
        {"persona": "lent", "metadata": {"persona": "lent", "persona_strength": "2"}}, 400, "persona_conflict"
    ),
    "a strength that is none": ({"persona": {"id": "lent", "strength": True}}, 400, "persona_invalid"),
    "nine at once": ({"persona": {"mix": {f"p{n}": 0.1 for n in range(9)}}}, 400, "persona_invalid"),
    "a misspelt field": ({"persona_id": "lent"}, 400, "persona_invalid"),
}  # fmt: skip
"""``OTHER`` stands for a name that only the other tenant has."""


async def ask_in_vain(world: World, rng: random.Random, deed: Deed) -> str:
    """Refused on every endpoint, streamed or not, with the right code."""
    tenant = rng.choice(TENANTS)
    (other,) = set(TENANTS) - {tenant}
    case = rng.choice(list(VAIN))
    fields, status, code = VAIN[case]
    deed.kind = "asks for what cannot be applied"
    told = _fill(fields, f"only-{other}")
    try:
        answer = await send(world, world.keys[tenant], question(world, rng), told)
    except openai.APIStatusError as error:
        if (error.status_code, error.code) == (status, code):
            return REFUSED
        raise Wrong(f"{case}: {error.status_code} {error.body}") from None
    raise Wrong(f"{case} was answered, with header {answer.header}")


def _fill(value: Any, other: str) -> Any:
    if isinstance(value, dict):
        return {key.replace("OTHER", other): _fill(item, other) for key, item in value.items()}
    return value.replace("OTHER", other) if isinstance(value, str) else value


def _kind(asked: Question) -> str:
    return asked.prompt.endpoint + (", streamed" if asked.stream else "")
