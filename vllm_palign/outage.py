"""Whether the registry is known to be down."""

from __future__ import annotations

import threading
import time

from vllm_palign.errors import PalignError, RegistryUnavailable
from vllm_palign.registry import Registry


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

    def begin(self) -> None:
        with self._lock:
            if not self._over.is_set():
                return
            self._over.clear()
        threading.Thread(target=self._watch, name="palign-outage", daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(RegistryUnavailable.retry_after)
            try:
                self._registry.ping()
            except PalignError:
                continue
            self._over.set()
            return
