"""Scope ``answers`` over HTTP: conversations go on from the token where they began to be steered, in the KV of
their earlier turns; prompts are everybody's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import oracle
from tests.conftest import Server
from tests.shown import Measured
from vllm_palign import Persona

BLOCK = 32
BOUND = 1e-4
SYSTEM = {"role": "system", "content": "You are on the staff of a small hotel by the sea. " * 6}


class Conversation:
    """A greedy conversation of one who asks for ``persona``; every answer is held against the reference method,
    steered from the last prompt token of its first turn on."""

    def __init__(
        self, server: Server, persona: Any, parts: list[tuple[Persona, float]], greeting: str
    ) -> None:
        self.server, self.persona, self.parts = server, persona, parts
        self.messages: list[dict[str, Any]] = [
            {"role": "system", "content": f"{greeting} {SYSTEM['content']}"}
        ]
        self.first: int | None = None
        self.cached: list[int] = []
        self.prompts: list[list[int]] = []
        self.worst = 0.0

    def say(self, question: str, reference: Any, **options: Any) -> None:
        self.messages.append({"role": "user", "content": question})
        reply = self.server.post(
            "/v1/chat/completions", messages=self.messages, persona=self.persona, max_tokens=12,
            temperature=0, logprobs=True, return_token_ids=True, **options,
        )  # fmt: skip
        assert reply.status_code == 200, reply.text
        body = reply.json()
        (choice,) = body["choices"]
        prompt, tokens = body["prompt_token_ids"], choice["token_ids"]
        if self.first is None:
            self.first = len(prompt) - 1
        start = 0 if self.scope == "all" else self.first
        own, best = oracle.greedy(reference, prompt, tokens, self.parts, start)
        said = np.array([token["logprob"] for token in choice["logprobs"]["content"]])
        self.worst = max(self.worst, float(np.abs(said - own).max()), float((best - own).max()))
        self.cached.append(body["usage"]["prompt_tokens_details"]["cached_tokens"])
        self.prompts.append([*prompt, *tokens])
        self.messages.append({"role": "assistant", "content": choice["message"]["content"]})

    @property
    def scope(self) -> str:
        return str(self.persona.get("scope")) if isinstance(self.persona, dict) else "answers"


Personas = tuple[Path, dict[str, Persona]]


@pytest.mark.shows(
    "features", "conversations, scope answers", note="three turns, cached tokens counted, HTTP"
)
def test_every_turn_finds_the_turns_before_and_is_steered_from_where_the_first_was(
    tiny_server: Server, tiny_personas: Personas, reference: Any, measured: Measured
) -> None:
    whole = tiny_personas[1]
    plain = Conversation(tiny_server, None, [], "Turns.")
    alice = Conversation(tiny_server, "p0", [(whole["p0"], 1.0)], "Turns.")
    blend = Conversation(
        tiny_server, {"mix": {"p1": 0.6, "p2": 0.4}}, [(whole["p1"], 0.6), (whole["p2"], 0.4)], "Turns.",
    )  # fmt: skip
    everybody = (plain, alice, blend)
    for question in ("Is it far to the beach?", "And to the station?", "Thank you."):
        for who in everybody:
            who.say(question, reference)
    measured({"worst": max(who.worst for who in everybody)})
    assert max(who.worst for who in everybody) < BOUND
    prompt = len(plain.prompts[0]) - 12
    assert plain.cached[0] == 0
    # What lies wholly before the last prompt token was the plain one's.
    assert alice.cached[0] == blend.cached[0] == (prompt - 1) // BLOCK * BLOCK > 0
    for who in everybody:
        for turn in (1, 2):
            before, now = who.prompts[turn - 1], who.prompts[turn]
            # The last token of an answer was said and never read.
            same = next(
                (at for at, (one, two) in enumerate(zip(before[:-1], now)) if one != two),  # noqa: B905
                len(before) - 1,
            )
            assert who.cached[turn] == same // BLOCK * BLOCK, (turn, same)
    assert alice.cached[2] > alice.cached[0]


def test_another_scope_and_another_persona_never_meet_an_answer(
    tiny_server: Server, tiny_personas: Personas, reference: Any
) -> None:
    """The same conversation word by word, asked for by others: only what is plain is theirs too."""
    whole = tiny_personas[1]
    first = Conversation(tiny_server, "p3", [(whole["p3"], 1.0)], "Others.")
    for question in ("Is breakfast included?", "When does it begin?"):
        first.say(question, reference)
    assert first.first is not None
    shared = first.first // BLOCK * BLOCK
    for persona, parts, expected in (
        ("p4", [(whole["p4"], 1.0)], shared),
        ({"id": "p3", "strength": 0.5}, [(whole["p3"], 0.5)], shared),
        ({"id": "p3", "scope": "all"}, [(whole["p3"], 1.0)], 0),
    ):
        other = Conversation(tiny_server, persona, parts, "Others.")
        other.messages = [dict(message) for message in first.messages[:3]]
        other.first = first.first
        other.say("When does it begin?", reference)
        assert other.cached == [expected], persona
        assert other.worst < BOUND


def test_a_text_completion_is_steered_from_its_last_prompt_token(
    tiny_server: Server, tiny_personas: Personas, reference: Any
) -> None:
    prompt = [11 + token for token in range(70)]

    def ask(persona: Any) -> tuple[int, list[float], list[float], list[int]]:
        body = tiny_server.post(
            "/v1/completions", prompt=prompt, persona=persona, max_tokens=4, temperature=0, logprobs=0,
            echo=False, return_token_ids=True,
        ).json()  # fmt: skip
        (choice,) = body["choices"]
        parts = [(tiny_personas[1]["p5"], 1.0)] if persona else []
        start = oracle.first_steered(persona, prompt)
        own, _ = oracle.greedy(reference, prompt, choice["token_ids"], parts, start)
        cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
        return cached, choice["logprobs"]["token_logprobs"], own.tolist(), choice["token_ids"]

    for persona, expected in ((None, 0), ("p5", 64), ({"id": "p5", "scope": "all"}, 0), ("p5", 64)):
        cached, said, wanted, _ = ask(persona)
        assert cached == expected, persona
        assert np.abs(np.array(said) - wanted).max() < BOUND
