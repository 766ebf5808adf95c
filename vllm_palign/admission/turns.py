"""Whose turn it is where there are few threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """At most ``at_once`` calls of one caller at a time; the others of that caller wait for them, and hold nobody
    else up. All calls come from one event loop."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._gates: dict[Hashable, tuple[asyncio.Semaphore, int]] = {}
        """Caller -> its gate, and how many of its calls are here. Nothing is kept of a caller who has none."""

    def __len__(self) -> int:
        return len(self._gates)

    @asynccontextmanager
    async def of(self, who: Hashable) -> AsyncIterator[None]:
        """Begins when it is the turn of this call of ``who``."""
        gate, here = self._gates.get(who) or (asyncio.Semaphore(self._at_once), 0)
        self._gates[who] = gate, here + 1
        try:
            async with gate:
                yield
        finally:
            gate, here = self._gates.pop(who)
            if here > 1:
                self._gates[who] = gate, here - 1
