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
"""Seconds a scrape waits; a busy engine or a registry that is down leaves the last numbers."""

_logger = logging.getLogger("vllm.palign")


class ScrapedGauges:
    """``slots`` and ``personas`` are asked at most once an interval; without an ``slots`` answer the
    gauges keep what they had."""

    def __init__(
        self,
        slots: Callable[[], Awaitable[dict[str, int]]],
        personas: Callable[[], Awaitable[int]],
    ) -> None:
        self._slots = slots
        self._personas = personas
        self._next = 0.0

    async def refresh(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _INTERVAL
        results = await asyncio.gather(
            asyncio.wait_for(self._slots(), _PATIENCE),
            asyncio.wait_for(self._personas(), _PATIENCE),
            return_exceptions=True,
        )
        slots, personas = results
        if isinstance(slots, dict):
            metrics.slots(**slots)
        if isinstance(personas, int):
            metrics.registry(personas)
        for problem in results:
            if isinstance(problem, BaseException):
                _logger.debug("palign: a gauge keeps its last value: %r", problem)
