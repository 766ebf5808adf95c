"""Personas that were deleted, wherever that was, leave this process's memory too."""

from __future__ import annotations

import logging
import threading

from vllm_palign.admission.resolver import Resolver
from vllm_palign.errors import PalignError

SECONDS = 30.0
"""Between two looks. A look asks the registry for the digests in memory, 500 at a time."""

_logger = logging.getLogger("vllm.palign")


class Forgetting:
    """Looks again and again whether what this process remembers is still registered, and drops what is not.

    Requests ask the registry for names, and so never meet a deleted persona. Its content would lie in memory until
    others need the room, which may be never. While the registry is down nothing is dropped: what is in memory is
    all there is to serve.
    """

    def __init__(self, resolver: Resolver, *, seconds: float = SECONDS) -> None:
        self._resolver = resolver
        self._seconds = seconds
        self._stop = threading.Event()

    def follow(self) -> None:
        """Start looking."""
        threading.Thread(target=self._watch, name="palign-forget", daemon=True).start()

    def close(self) -> None:
        self._stop.set()

    def look(self) -> None:
        """Drop what is not registered any more. Raises RegistryUnavailable."""
        if self._resolver.outage:
            return
        registry = self._resolver.registry
        held = self._resolver.held()
        self._resolver.forget(held - registry.registered(held))
        registry.scrub()

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self.look()
            except PalignError as error:
                _logger.debug("palign: deleted personas are not known: %s", error.message)
            except Exception:
                # A thread that ends would keep what was deleted for as long as the server runs.
                _logger.exception("palign: deleted personas could not be looked for")
