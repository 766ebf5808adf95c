"""Any OpenAI-compatible endpoint as judge: asked again when its reply is no rating, never guessed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from palign_fit.errors import InputError
from palign_fit.evaluation.client import base_url, open_client, run_all
from palign_fit.evaluation.rubric import ATTEMPTS, REMINDER, parse_rating
from palign_fit.progress import Tick

if TYPE_CHECKING:
    from openai import AsyncOpenAI

UNPARSABLE, FAILED = "unparsable", "failed"
MAX_REPLY = 20_000
"""Characters of a reply that are read."""

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Verdict:
    """``rating`` 1..6, or None with ``problem``: unparsable after all ``attempts``, or failed
    (errors or no reply in time)."""

    rating: int | None
    attempts: int
    problem: str = ""


@dataclass(frozen=True)
class Rater:
    """A judge ``model`` at ``url``; ``timeout`` in seconds for one reply."""

    url: str
    model: str
    api_key: str | None = None
    in_flight: int = 8
    timeout: float = 120.0

    def __post_init__(self) -> None:
        base_url(self.url)
        if self.in_flight < 1 or not self.timeout > 0:
            raise InputError(
                f"--judge-in-flight {self.in_flight}, --timeout {self.timeout}: wanted at least 1, "
                "and more than 0 seconds"
            )

    def rate(self, cases: Sequence[Messages], tick: Tick) -> list[Verdict]:
        """One verdict a case, in order.

        Raises InputError where the endpoint refuses (wrong key, unknown model): nothing would help.
        """

        async def one(case: Messages, client: AsyncOpenAI) -> Verdict:
            verdict = await self._rate(client, case)
            tick(1)
            return verdict

        return run_all(
            [partial(one, case) for case in cases],
            lambda: open_client(self.url, self.api_key, timeout=self.timeout),
            self.in_flight,
        )

    async def _rate(self, client: AsyncOpenAI, case: Messages) -> Verdict:
        import openai

        turns: Any = list(case)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply = await client.chat.completions.create(
                    model=self.model, messages=turns, temperature=0
                )
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in (408, 409, 429):
                    raise
                return Verdict(None, attempt, FAILED)
            except openai.APIError:
                return Verdict(None, attempt, FAILED)
            said = (reply.choices[0].message.content or "") if reply.choices else ""
            rating = parse_rating(said[:MAX_REPLY]) if len(said) <= MAX_REPLY else None
            if rating is not None:
                return Verdict(rating, attempt)
            turns = [
                *case,
                {"role": "assistant", "content": said[:1000]},
                {"role": "user", "content": REMINDER},
            ]
        return Verdict(None, ATTEMPTS, UNPARSABLE)
