"""Tokens of one HTTP request, counted when it is over and not while it runs."""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Any

_CURRENT: ContextVar[Usage | None] = ContextVar("palign_usage", default=None)

_BEAM = re.compile(r"(?P<step>.+-[0-9a-f]+)-beam-\d+(-[0-9a-f]{8})?", re.DOTALL)
"""vLLM searches with a request for each beam and token, whose prompt is all that came before: ids are
``REQUEST-STEP-beam-N``, with eight random digits behind. Prompts of one request that are searched at once share
REQUEST."""


class Usage:
    """Keeps vLLM's ``RequestState`` of everything an HTTP request has sent to the engine: several prompts,
    several samples. The states know their tokens, also when the client has gone away."""

    def __init__(self) -> None:
        self._states: list[Any] = []
        _CURRENT.set(self)

    @staticmethod
    def note(state: Any) -> None:
        """``state`` belongs to the request of this context, if there is one."""
        usage = _CURRENT.get()
        if usage is not None and state is not None:
            usage._states.append(state)

    @property
    def prompt(self) -> int:
        """Prompt tokens; several samples of one prompt, and the beams of one search, count it once."""
        total, steps = 0, dict[str, list[list[int]]]()
        for state in self._states:
            if state.request_index:
                continue
            beam = _BEAM.fullmatch(state.request_id)
            if beam is None:
                total += state.prompt_len
            else:
                steps.setdefault(beam["step"], []).append(state.prompt_token_ids)
        searches: list[list[list[int]]] = []
        for beams in steps.values():
            # One token more than a beam of the step before, which then has no other step after it.
            before = next(
                (n for n, last in enumerate(searches) if beams[0][:-1] in last), len(searches)
            )
            if before == len(searches):
                total += len(beams[0])
            searches[before : before + 1] = [beams]
        return total

    @property
    def generated(self) -> int:
        return sum(
            state.detokenizer.num_output_tokens()
            for state in self._states
            if state.detokenizer is not None
        )

    def __bool__(self) -> bool:
        return bool(self._states)
