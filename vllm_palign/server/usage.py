"""Tokens of one HTTP request, counted when it is over and not while it runs."""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Any

_CURRENT: ContextVar[Usage | None] = ContextVar("palign_usage", default=None)

_BEAM = re.compile(r"(?P<search>.+)-[0-9a-f]+-beam-\d+(-[0-9a-f]{8})?", re.DOTALL)
"""vLLM searches with a request for each beam and token, whose prompt is all that came before: ids are
``SEARCH-STEP-beam-N``, with eight random digits behind."""


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
        lengths: dict[object, int] = {}
        for number, state in enumerate(self._states):
            if state.request_index == 0:
                beam = _BEAM.fullmatch(state.request_id)
                search = beam["search"] if beam else number
                lengths.setdefault(search, state.prompt_len)
        return sum(lengths.values())

    @property
    def generated(self) -> int:
        return sum(
            state.detokenizer.num_output_tokens()
            for state in self._states
            if state.detokenizer is not None
        )

    def __bool__(self) -> bool:
        return bool(self._states)
