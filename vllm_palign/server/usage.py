"""Tokens of one HTTP request, counted when it is over and not while it runs."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

_CURRENT: ContextVar[Usage | None] = ContextVar("palign_usage", default=None)

_BEAM = re.compile(r"(?P<step>.+-[0-9a-f]+)-beam-\d+(-[0-9a-f]{8})?", re.DOTALL)
"""vLLM searches with a request for each beam and token, whose prompt is all that came before: ids are
``REQUEST-STEP-beam-N``, with eight random digits behind. Prompts of one request that are searched at once share
REQUEST."""


class Usage:
    """Keeps vLLM's ``RequestState`` of everything an HTTP request has sent to the engine: several prompts,
    several samples. The states know their tokens, also when the client has gone away. Of a beam search, which
    sends a whole prompt for each beam and token, the last step is kept."""

    def __init__(self) -> None:
        self._states: list[Any] = []
        self._searches = _Searches()
        _CURRENT.set(self)

    @staticmethod
    def note(state: Any) -> None:
        """``state`` belongs to the request of this context, if there is one."""
        usage = _CURRENT.get()
        if usage is None or state is None:
            return
        beam = _BEAM.fullmatch(state.request_id)
        if beam is None or state.prompt_token_ids is None:
            usage._states.append(state)
        else:
            usage._searches.note(beam["step"], state)

    @property
    def prompt(self) -> int:
        """Prompt tokens; several samples of one prompt, and the beams of one search, count it once."""
        own = sum(state.prompt_len for state in self._states if not state.request_index)
        return int(own) + self._searches.prompt

    @property
    def generated(self) -> int:
        return self._searches.generated + _generated(state.detokenizer for state in self._states)

    def __bool__(self) -> bool:
        return bool(self._states) or self._searches.prompt > 0


class _Searches:
    """The beam searches of one HTTP request. A step's beams have all ended before the next one's begin."""

    def __init__(self) -> None:
        self.prompt = 0
        self._ended = 0
        self._steps: dict[str, _Step] = {}

    @property
    def generated(self) -> int:
        return self._ended + sum(_generated(step.detokenizers) for step in self._steps.values())

    def note(self, name: str, state: Any) -> None:
        tokens = array("q", state.prompt_token_ids)
        before, beam = _digest(tokens[:-1]), _digest(tokens)
        step = self._steps.get(name)
        if step is None:
            # One token more than a beam of the step before, which then has no other step after it.
            last = next((key for key, step in self._steps.items() if before in step.beams), None)
            if last is not None:
                self._ended += _generated(self._steps.pop(last).detokenizers)
            step = self._steps[name] = _Step()
            step.begins = None if last is not None else before
            counts = last is None
        else:
            # A client's prompts, under an id that looks like this, are no beams of one prompt.
            counts = step.begins not in (None, before) or beam in step.beams
        self.prompt += len(tokens) if counts else 0
        step.beams.add(beam)
        step.detokenizers.append(state.detokenizer)


class _Step:
    """Digests of the beams' tokens: a beam of 4,000 tokens as vLLM keeps it takes 32 KB, eight of them are sent for
    every token."""

    def __init__(self) -> None:
        self.begins: bytes | None = None
        """What all beams of a search's first step have in common; None of a later step."""
        self.beams: set[bytes] = set()
        self.detokenizers: list[Any] = []


def _digest(tokens: array[int]) -> bytes:
    return hashlib.blake2b(tokens, digest_size=16).digest()


def _generated(detokenizers: Iterable[Any]) -> int:
    return sum(int(each.num_output_tokens()) for each in detokenizers if each is not None)
