"""What each name may hold at which moment."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from dataclasses import dataclass

from vllm_palign import Persona
from vllm_palign.selection import DIGEST_PREFIX

OPERATOR = "operator"
TENANTS = ("north", "south")
"""Who asks and manages at random. acme and globex attack each other (``tests/http/tenants/attempts.py``)."""
SHARED = ("lent", "open")
"""The operator's, given to both."""
OWN = tuple(f"p{number}" for number in range(8))
"""Names that both tenants have, for different personas, at times."""

_FORGET_SECONDS = 600
"""Longer than any request takes."""


@dataclass
class State:
    """``digest`` (None: nothing) may be seen from when the change to it was sent until the change away
    from it was acknowledged."""

    digest: str | None
    since: float
    until: float = math.inf


class Name:
    """One name in one namespace. Changes come one at a time: hold ``writing``."""

    def __init__(self) -> None:
        self.writing = asyncio.Lock()
        self._states = [State(None, -math.inf)]

    @property
    def settled(self) -> bool:
        """False after a change that was never answered, until ``found`` says what became of it."""
        return sum(state.until == math.inf for state in self._states) == 1

    @property
    def holds(self) -> str | None:
        return self._states[-1].digest

    def change(self, digest: str | None) -> None:
        """A change is being sent."""
        self._states.append(State(digest, time.monotonic()))

    def acknowledged(self) -> None:
        self._end(self._states[:-1])

    def refused(self) -> None:
        self._states.pop()

    def found(self, digest: str | None) -> bool:
        """The server was restarted and holds ``digest``. False if that cannot be."""
        alive = [state for state in self._states if state.until == math.inf]
        holding = [state for state in alive if state.digest == digest]
        if not holding:
            return False
        self._states.remove(holding[-1])
        self._end(self._states)
        self._states.append(holding[-1])
        return True

    def possible(self, start: float, end: float) -> set[str | None]:
        """What a look that took place between ``start`` and ``end`` may have seen."""
        return {
            state.digest for state in self._states if state.since <= end and state.until >= start
        }

    def _end(self, states: list[State]) -> None:
        now = time.monotonic()
        for state in states:
            state.until = min(state.until, now)
        self._states = [state for state in self._states if state.until > now - _FORGET_SECONDS]


class Names:
    """All names of all owners, and the personas that were ever sent."""

    def __init__(self) -> None:
        self.of: defaultdict[tuple[str, str], Name] = defaultdict(Name)
        self._personas: dict[str, Persona] = {}

    def remember(self, persona: Persona) -> str:
        self._personas[persona.digest[:DIGEST_PREFIX]] = persona
        return persona.digest

    def persona(self, digest: str) -> Persona | None:
        """By its digest or what the header shows of it."""
        return self._personas.get(digest[:DIGEST_PREFIX])

    def possible(self, tenant: str, name: str, start: float, end: float) -> set[str | None]:
        """What ``tenant`` may have been given for ``name``: its own, or else the operator's."""
        seen = self.of[tenant, name].possible(start, end)
        if None in seen and name in SHARED:
            seen = (seen - {None}) | self.of[OPERATOR, name].possible(start, end)
        return seen
