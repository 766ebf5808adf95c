"""The server backend: a running palign server, so that what is served is what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from palign_fit.errors import FitError, InputError
from palign_fit.evaluation import texts
from palign_fit.evaluation.client import IN_FLIGHT, base_url, first_model, open_client, run_all
from palign_fit.evaluation.tasks import Setting, Speech, Task
from palign_fit.progress import Tick
from vllm_palign.directions.numbers import Reals

if TYPE_CHECKING:
    from openai import AsyncOpenAI

HEADER = "x-palign-persona"
MAX_PROMPTS = 32
MAX_TOKENS = 16_384
"""Prompts and tokens of one request: its reply holds a log-probability a token."""


class ServerBackend:
    """A palign server and its base model, many requests at once; personas are chosen by id and checked to
    be applied.

    Tasks are scored with echoed prompt log-probs on ``/v1/completions``. ``source`` is the Hugging Face name
    or folder of the served model's tokenizer: prompts are sent as token ids, so both backends measure
    the same tokens.
    """

    def __init__(
        self,
        url: str,
        source: str,
        *,
        api_key: str | None,
        strength: float,
        in_flight: int = IN_FLIGHT,
    ) -> None:
        if in_flight < 1:
            raise InputError(f"--in-flight {in_flight}: wanted at least 1")
        self.url, self.source = base_url(url), source
        self.strength = strength
        self.in_flight = in_flight
        self._key = api_key
        self.digests: dict[str, str] = {}
        """Persona -> digest prefix, as the server's replies named it."""
        (self.model_name,) = run_all([first_model], self._open, 1)

    @cached_property
    def tokenizer(self) -> Any:
        return open_tokenizer(self.source)

    def score(self, tasks: Sequence[Task], tick: Tick) -> list[list[Reals]]:
        left = [0] * len(tasks)
        results = [[np.zeros(0)] * len(task.continuations) for task in tasks]
        calls = []
        for place, task in enumerate(tasks):
            for rows in _requests(task):
                left[place] += 1

                async def call(
                    client: AsyncOpenAI,
                    place: int = place,
                    task: Task = task,
                    rows: list[int] = rows,
                ) -> None:
                    scores = await self._score(client, task, rows)
                    for row, score in zip(rows, scores, strict=True):
                        results[place][row] = score
                    left[place] -= 1
                    if not left[place]:
                        tick(1)

                calls.append(call)
        run_all(calls, self._open, self.in_flight)
        return results

    def speak(self, speeches: Sequence[Speech], max_tokens: int, tick: Tick) -> list[str]:
        """Over chat completions."""

        async def ask(speech: Speech, client: AsyncOpenAI) -> str:
            messages = texts.messages(speech.question, speech.setting.system)
            answer = await self._chat(speech.setting, messages, max_tokens, client)
            tick(1)
            return answer

        calls = [partial(ask, speech) for speech in speeches]
        return run_all(calls, self._open, self.in_flight)

    def converse(
        self,
        settings: Sequence[Setting],
        users: Sequence[Sequence[str]],
        max_tokens: int,
        tick: Tick,
    ) -> list[list[str]]:
        """Over chat completions, each with all that was said before: the server's prefix cache has it."""

        async def talk(setting: Setting, said: Sequence[str], client: AsyncOpenAI) -> list[str]:
            answers: list[str] = []
            for turn, user in enumerate(said):
                past = zip(said[:turn], answers, strict=True)
                turns = texts.conversation(past, user, setting.system)
                answers.append(await self._chat(setting, turns, max_tokens, client))
                tick(1)
            return answers

        calls = [partial(talk, *one) for one in zip(settings, users, strict=True)]
        return run_all(calls, self._open, self.in_flight)

    async def _chat(
        self, setting: Setting, messages: Any, max_tokens: int, client: AsyncOpenAI
    ) -> str:
        raw = await client.chat.completions.with_raw_response.create(
            model=self.model_name,
            messages=messages,
            max_tokens=max_tokens,
            temperature=0,
            extra_body=self._persona(setting, setting.scope),
        )
        self._check(setting, raw.headers)
        choices = raw.parse().choices
        if not choices:
            raise FitError(f"{self.url}: answered a chat without a choice")
        return (choices[0].message.content or "").strip()

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": "server",
            "url": self.url,
            "model": self.model_name,
            "personas": dict(sorted(self.digests.items())),
        }

    async def _score(self, client: AsyncOpenAI, task: Task, rows: list[int]) -> list[Reals]:
        """Log-probabilities of the continuations ``rows`` of one task."""
        raw = await client.completions.with_raw_response.create(
            model=self.model_name,
            prompt=[[*task.prefix, *task.continuations[row]] for row in rows],
            max_tokens=0,
            echo=True,
            logprobs=0,
            temperature=0,
            extra_body=self._persona(task.setting, "all"),
        )
        self._check(task.setting, raw.headers)
        choices = sorted(raw.parse().choices, key=lambda choice: choice.index)
        scored = []
        for row, choice in zip(rows, choices, strict=False):
            length = len(task.continuations[row])
            scores = choice.logprobs.token_logprobs if choice.logprobs else None
            if scores is not None and len(scores) == len(task.prefix) + length:
                scored.append(np.array(scores[-length:], dtype=np.float64))
        if len(scored) != len(rows):
            raise InputError(
                f"{self.url}: gave no log-probability for each prompt token; wanted a vLLM "
                "server, which echoes prompts with log-probs"
            )
        return scored

    def _open(self) -> AsyncOpenAI:
        return open_client(self.url, self._key)

    def _persona(self, setting: Setting, scope: str) -> dict[str, Any] | None:
        """The request's extra fields. What is scored is a prompt to the server, and has to be steered there."""
        if setting.persona_id is None:
            return None
        strength = self.strength if setting.strength is None else setting.strength
        return {"persona": {"id": setting.persona_id, "strength": strength, "scope": scope}}

    def _check(self, setting: Setting, headers: Mapping[str, str]) -> None:
        """Raises InputError unless the reply says that the setting's persona was applied.

        A server without palign ignores the field and answers plainly: never measure that.
        """
        persona = setting.persona_id
        if persona is None:
            return
        header = headers.get(HEADER)
        name, _, digest = (header or "").partition("@")
        digest = digest.partition(";")[0]
        if name != persona or not digest:
            raise InputError(
                f"{self.url}: did not say that persona {persona!r} was applied ({HEADER}: {header}); "
                "wanted a server started with --plugin palign"
            )
        if setting.persona is not None and not setting.persona.digest.startswith(digest):
            raise InputError(
                f"{self.url}: serves other bytes as {persona!r} ({digest}) than the file given "
                f"({setting.persona.digest[:12]}), which says what was held out; give the folder "
                "that the server was started with"
            )
        self.digests[persona] = digest


def open_tokenizer(source: str) -> Any:
    """The tokenizer of a checkpoint folder or hub name. Raises InputError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"--model {source}: its tokenizer cannot be opened: {first[0][:300]}. "
            "Give the Hugging Face name or folder of the model that is served"
        ) from error


def _requests(task: Task) -> Iterator[list[int]]:
    """Rows of ``task`` that go into one request."""
    rows: list[int] = []
    tokens = 0
    for row, continuation in enumerate(task.continuations):
        length = len(task.prefix) + len(continuation)
        if rows and (len(rows) == MAX_PROMPTS or tokens + length > MAX_TOKENS):
            yield rows
            rows, tokens = [], 0
        rows.append(row)
        tokens += length
    if rows:
        yield rows
