"""Registered personas of all tenants, shared by every front end that opens the same database."""

from __future__ import annotations

from collections.abc import Iterable

from vllm_palign.persona import Persona
from vllm_palign.registry.records import Outcome, Page, Record
from vllm_palign.shape import ModelShape
from vllm_palign.tenant import Tenant


class Registry:
    """Blocking; front ends call it from a bounded thread pool. Safe to use from several threads.

    Every method raises RegistryUnavailable when the database does not answer in time.
    """

    def __init__(self, url: str, *, timeout: float = 5.0, connections: int = 8) -> None: ...

    def migrate(self) -> None:
        """Bring the schema up to date under a lock. Raises PalignStartupError for a newer schema."""

    def lookup(self, tenant: Tenant, names: Iterable[str]) -> dict[str, Record]:
        """The visible records of ``names``; missing ones are left out. One indexed query."""
        raise NotImplementedError

    def blob(self, digest: str) -> bytes:
        """The bytes of ``digest``, verified. Raises PersonaNotFound or PersonaCorrupt."""
        raise NotImplementedError

    def list(
        self, tenant: Tenant, *, limit: int, after: str = "", shape: ModelShape | None = None
    ) -> Page:
        """What ``tenant`` sees, sorted by name, from behind ``after``; only what fits ``shape`` if given."""
        raise NotImplementedError

    def put(
        self, tenant: Tenant, name: str, persona: Persona, data: bytes, *, replace: bool = False
    ) -> tuple[Record, Outcome]:
        """Register ``data`` (whose content is ``persona``) as the tenant's own ``name``.

        Raises PersonaExists for other bytes under that name without ``replace``, PersonaForbidden
        beyond the tenant's quota, RegistryFull.
        """
        raise NotImplementedError

    def delete(self, tenant: Tenant, name: str) -> Record:
        """Remove the tenant's own ``name``. Raises PersonaNotFound, or PersonaForbidden for a shared one."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        """Number of registered personas by owner."""
        raise NotImplementedError

    def close(self) -> None:
        """Drop all connections. The next call opens new ones."""
