"""Streaming-input sessions (``AsyncLLM.generate`` with a generator): one session, one effect.

vLLM continues a session in the KV blocks it has, under the salt of its first part, and takes only the sampling
parameters of a later one. A part with another effect would be computed from, and into, KV of the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from vllm_palign.admission.armed import packed_in
from vllm_palign.errors import PersonaConflict

_firsts: WeakKeyDictionary[Any, Mapping[str, Any] | None] = WeakKeyDictionary()
"""The packed effect of each running session's first part, by vLLM's ``RequestState``, which lives as long as
the session."""


def check(state: Any, request: Any) -> None:
    """``request`` goes on with the session of ``state`` (None: it begins one, or is none).

    Raises PersonaConflict when it would change the session's effect or scope. Otherwise the session's first
    steered token stays what it was. The part that only ends a session carries no tokens and may say anything.
    """
    if not request.resumable or state not in _firsts:
        return
    first, packed = _firsts[state], packed_in(request.sampling_params)
    if _identity(first) != _identity(packed):
        raise PersonaConflict(
            "a part of a streaming session asks for another persona, strength or scope than its first part, "
            "whose KV blocks it would go on with; begin another session",
            param="persona",
        )
    if first is not None and packed is not None:
        packed["start"] = first["start"]


def remember(state: Any, request: Any) -> None:
    """``request`` has been added under ``state``."""
    if request.resumable and state is not None:
        _firsts.setdefault(state, packed_in(request.sampling_params))


def _identity(packed: Mapping[str, Any] | None) -> tuple[str, str] | None:
    return None if packed is None else (packed["key"], packed["scope"])
