"""Conversations side by side: whom a column asks, what was said in it, and one question to all at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from vllm_palign.play.client import Server, Trouble
from vllm_palign.play.words import applied

_logger = logging.getLogger(__name__)

FRAME = 0.08
"""Seconds between two looks at running answers: as often as eyes follow."""


@dataclass(frozen=True)
class Wish:
    """Whom a column asks. ``weights`` holds one persona or a blend of several; empty is the plain model."""

    weights: Mapping[str, float] = field(default_factory=dict)
    strength: float = 1.0
    scope: str | None = None
    """None: as the server does by itself."""

    def field(self) -> dict[str, Any] | None:
        """The request's ``persona``."""
        if not self.weights:
            return None
        if len(self.weights) == 1:
            who: dict[str, Any] = {"id": next(iter(self.weights))}
        else:
            who = {"mix": {name: round(weight, 3) for name, weight in self.weights.items()}}
        return {
            **who,
            "strength": round(self.strength, 3),
            **({"scope": self.scope} if self.scope else {}),
        }


@dataclass(frozen=True)
class Sampling:
    """The same for all columns."""

    max_tokens: int = 120
    temperature: float = 0.7
    seed: int = 1


@dataclass
class Turn:
    """A question and what came of it. Times are seconds from the question on."""

    question: str
    text: str = ""
    header: str | None = None
    trouble: str = ""
    tokens: int = 0
    first: float | None = None
    seconds: float = 0.0
    running: bool = True
    stopped: bool = False

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first."""
        if self.first is None or self.tokens < 2 or self.seconds <= self.first:
            return None
        return (self.tokens - 1) / (self.seconds - self.first)

    def figures(self) -> str:
        """Who answered and how fast, in words."""
        if self.trouble:
            return self.trouble
        if self.first is None:
            if self.running:
                return "waiting …"
            if self.stopped:
                return "stopped before the first token"
            return f"{applied(self.header)} · answered without a word"
        parts = [applied(self.header), f"first token {1000 * self.first:.0f} ms"]
        if self.rate is not None:
            parts.append(f"{self.rate:.0f} tokens/s")
        if self.stopped:
            parts.append("stopped")
        return " · ".join(parts)


@dataclass
class Conversation:
    """One column's."""

    turns: list[Turn] = field(default_factory=list)

    def request(self, model: str, question: str, wish: Wish, sampling: Sampling) -> dict[str, Any]:
        """The chat request that asks ``question`` after the turns so far. A question without answer is left out."""
        messages = []
        for turn in self.turns:
            if turn.text and not turn.trouble:
                messages += [_said("user", turn.question), _said("assistant", turn.text)]
        persona = wish.field()
        return {
            "model": model,
            "messages": [*messages, _said("user", question)],
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            **({"persona": persona} if persona else {}),
        }

    def shown(self) -> list[dict[str, str]]:
        """The messages on the page."""
        messages = []
        for turn in self.turns:
            messages.append(_said("user", turn.question))
            if turn.text:
                messages.append(_said("assistant", turn.text))
        return messages


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


async def ask(
    server: Server,
    key: str,
    requests: Sequence[tuple[Turn, Mapping[str, Any]]],
    stop: asyncio.Event,
) -> AsyncIterator[None]:
    """Fill all turns at once, each from its request; comes back whenever there is something new to show.

    A server's error ends in its own turn, the others go on. ``stop`` ends all; what was said until then stays.
    """
    began = time.monotonic()
    running = {
        asyncio.create_task(_fill(server, key, turn, body, began)) for turn, body in requests
    }
    stopping = asyncio.create_task(stop.wait())
    try:
        before = None
        while running:
            await asyncio.wait(
                {*running, stopping}, timeout=FRAME, return_when=asyncio.FIRST_COMPLETED
            )
            if stopping.done():
                break
            running = {task for task in running if not task.done()}
            now = [(len(turn.text), turn.running) for turn, _ in requests]
            if now != before:
                before = now
                yield
                await asyncio.sleep(FRAME)
    finally:
        stopping.cancel()
        for task in running:
            task.cancel()
        await asyncio.gather(stopping, *running, return_exceptions=True)
        for turn, _ in requests:
            turn.stopped |= turn.running
            turn.running = False
    yield


async def _fill(
    server: Server, key: str, turn: Turn, body: Mapping[str, Any], began: float
) -> None:
    try:
        async with aclosing(server.chat(key, body)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                if piece.tokens is not None:
                    turn.tokens = piece.tokens
                    continue
                turn.header = piece.header or turn.header
                if piece.text:
                    turn.seconds = time.monotonic() - began
                    turn.first = turn.seconds if turn.first is None else turn.first
                    turn.text += piece.text
                    turn.tokens += 1
    except Trouble as trouble:
        turn.trouble = trouble.sentence
    except Exception as error:
        # Nobody looks at this task's result: its column does.
        _logger.exception("palign play: an answer could not be shown")
        turn.trouble = f"The page could not read this answer ({type(error).__name__})."
    turn.running = False
