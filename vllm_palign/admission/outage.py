"""Whether the registry is known to be down."""

from __future__ import annotations

import logging
import threading
import time

from vllm_palign import metrics
from vllm_palign.errors import PalignError, RegistryUnavailable
from vllm_palign.registry import Registry

_logger = logging.getLogger("vllm.palign")


class Outage:
    """True from ``begin`` until the registry has answered again.

    Requests do not find that out by trying: a database that hangs would let each of them wait. One thread
    asks every ``RegistryUnavailable.retry_after`` seconds.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._over.set()

    def __bool__(self) -> bool:
        return not self._over.is_set()

    def begin(self, error: RegistryUnavailable) -> None:
        with self._lock:
            if not self._over.is_set():
                return
            self._over.clear()
        metrics.registry_down(True)
        _logger.error(
            "palign: the persona registry does not answer; personas in memory go on as they were, others "
            "are refused: %s",
            error.__cause__ or error,
        )
        threading.Thread(target=self._watch, name="palign-outage", daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(RegistryUnavailable.retry_after)
            try:
                self._registry.ping()
            except PalignError:
                continue
            metrics.registry_down(False)
            _logger.info("palign: the persona registry answers again")
            self._over.set()
            return
