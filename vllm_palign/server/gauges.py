"""Numbers that are somewhere else, the registry's size and a worker's slots, fetched when scraped."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from vllm_palign import metrics

_INTERVAL = 5.0
"""Seconds between two looks, however often /metrics is asked."""
_PATIENCE = 1.0
"""Seconds a scrape waits. A busy engine, or a registry that is down, leaves the last numbers."""

_logger = logging.getLogger("vllm.palign")


class ScrapedGauges:
    """``slots`` asks a worker for ``OffsetBank.usage``, ``personas`` the registry for its size."""

    def __init__(
        self,
        slots: Callable[[], Awaitable[dict[str, int]]],
        personas: Callable[[], Awaitable[int]],
    ) -> None:
        self._slots = slots
        self._personas = personas
        self._looking: asyncio.Task[None] | None = None
        self._next = 0.0

    async def refresh(self) -> None:
        """Called before a scrape is answered; never raises and never waits long."""
        if self._looking is None or self._looking.done():
            if time.monotonic() < self._next:
                return
            self._next = time.monotonic() + _INTERVAL
            self._looking = asyncio.create_task(self._look())
        # Does not cancel what is late: an answer to a call nobody waits for would upset vLLM's client.
        await asyncio.wait((self._looking,), timeout=_PATIENCE)

    async def _look(self) -> None:
        await asyncio.gather(self._look_at_slots(), self._look_at_registry())

    async def _look_at_slots(self) -> None:
        try:
            metrics.slots(**await self._slots())
        except Exception as error:
            _logger.debug("palign: slots are not known: %r", error)

    async def _look_at_registry(self) -> None:
        try:
            metrics.registry(await self._personas())
        except Exception as error:
            _logger.debug("palign: the registry's size is not known: %r", error)
