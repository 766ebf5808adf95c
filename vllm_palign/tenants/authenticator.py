"""The tenants of a running server: the file as it was last readable."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from vllm_palign import metrics
from vllm_palign.errors import KeyInvalid
from vllm_palign.tenants.file import KeyTable, Labels, TenantsError, TenantsFile
from vllm_palign.tenants.tenant import Tenant

POLL_SECONDS = 1.0

_logger = logging.getLogger("vllm.palign")


class Authenticator:
    """Follows the tenants file. A changed file counts within about a second; one that cannot be used
    leaves the last good one in force, which is logged, counted and shown by a gauge until it is mended.

    One per front-end process. Looking a key up never touches the disk: a thread watches the file.
    """

    def __init__(self, path: str | Path, *, poll_seconds: float = POLL_SECONDS) -> None:
        """Raises TenantsError when the file cannot be used: a server must not start without it."""
        self.path = Path(path)
        self._seen = self._signature()
        self._labels = Labels()
        self._table = KeyTable(TenantsFile.read(self.path), self._labels)
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self) -> None:
        """Start watching the file."""
        self._thread = threading.Thread(target=self._watch, name="palign-tenants", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def authenticate(self, headers: list[tuple[bytes, bytes]]) -> Tenant:
        """The tenant of the API key in ``headers`` (as ASGI gives them). Raises KeyInvalid."""
        sent = [value for name, value in headers if name == b"authorization"]
        if not sent:
            raise KeyInvalid(
                "no API key; send the header 'Authorization: Bearer KEY' (in OpenAI clients: api_key)"
            )
        if len(sent) > 1:
            raise KeyInvalid("more than one Authorization header")
        scheme, _, key = sent[0].decode("latin-1").partition(" ")
        tenant = self._table.find(key.strip(" ")) if scheme.lower() == "bearer" else None
        if tenant is None:
            # The same words for unknown, revoked and wrong keys; never the key itself.
            raise KeyInvalid("the API key is not known here")
        return tenant

    def refresh(self) -> None:
        """Read the file again if it has changed since the last look."""
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._table = KeyTable(TenantsFile.read(self.path), self._labels)
        except TenantsError as error:
            metrics.tenants_reloaded(ok=False)
            _logger.error(
                "palign: the tenants file has changed and cannot be used; the tenants stay as they were, "
                "revoked keys included: %s",
                error.message,
            )
        else:
            metrics.tenants_reloaded(ok=True)
            _logger.info("palign: %s read again: %d API keys", self.path, len(self._table))

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            try:
                self.refresh()
            except Exception:
                # A thread that ends would leave revoked keys valid for as long as the server runs.
                _logger.exception("palign: the tenants file could not be looked at")

    def _signature(self) -> tuple[int, ...] | None:
        try:
            status = self.path.stat()
        except (OSError, ValueError):
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size
