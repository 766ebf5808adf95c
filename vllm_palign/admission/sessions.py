"""Streaming-input sessions (``AsyncLLM.generate`` with a generator): one session, one effect.

vLLM continues a session in the KV blocks it has, under the salt of its first part, and takes only the sampling
parameters of a later one. A part with another effect would be computed from, and into, KV of the first.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from vllm_palign.admission.armed import key_of
from vllm_palign.errors import PersonaConflict

_effects: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""The effect of each running session, by vLLM's ``RequestState``, which lives as long as the session."""


def check(state: Any, request: Any) -> None:
    """``request`` goes on with the session of ``state`` (None: it begins one, or is none).

    Raises PersonaConflict when it would change the session's effect. The part that only ends a session
    carries no tokens and may say anything.
    """
    if request.resumable and state in _effects and _effects[state] != key_of(request):
        raise PersonaConflict(
            "a part of a streaming session asks for another persona or strength than its first part, whose "
            "KV blocks it would go on with; begin another session",
            param="persona",
        )


def remember(state: Any, request: Any) -> None:
    """``request`` has been added under ``state``."""
    if request.resumable and state is not None:
        _effects.setdefault(state, key_of(request))
