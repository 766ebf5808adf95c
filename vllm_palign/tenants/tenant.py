"""Who asks: a tenant, as the registry, the store and the routes see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vllm_palign.errors import PersonaForbidden

OPERATOR = ""
"""The namespace of ``--palign-personas`` and of servers without tenants. What tenants share lives here."""

Role = Literal["use", "manage"]


@dataclass(frozen=True)
class Tenant:
    """One caller's namespace and rights. Without ``--palign-tenants`` everybody is ``Tenant()``."""

    name: str = OPERATOR
    shared: frozenset[str] | None = None
    """Names of the operator's personas this tenant may use beside its own; None means all of them.
    An own persona hides a shared one of the same name."""
    may_use: bool = True
    may_manage: bool = True
    max_strength: float | None = None
    """Tighter bound than the server's, or None."""
    quota: int | None = None
    """Most personas it may own, or None."""
    shared_kv: frozenset[str] = frozenset()
    """Those of ``shared`` with which requests of several tenants may meet in the KV cache."""
    isolated: bool = False
    """Whether KV blocks are kept apart from other tenants'."""
    isolated_plain: bool = False
    """The same for requests without a persona."""
    label: str = "default"
    """Its value in metrics: the name, or ``other`` beyond a bounded number of names."""
    key_id: str = ""
    """Public half of the API key it came with, for audit lines."""

    def sees(self, owner: str, name: str) -> bool:
        """Whether persona ``name`` of the namespace ``owner`` is visible."""
        if owner == self.name:
            return True
        return owner == OPERATOR and (self.shared is None or name in self.shared)

    def require(self, role: Role) -> None:
        """Raises PersonaForbidden when the caller's key does not have ``role``."""
        if not {"use": self.may_use, "manage": self.may_manage}[role]:
            raise PersonaForbidden(f"this API key does not have the role {role!r}")

    def strength_bound(self, server: float) -> float:
        """The largest strength allowed: the server's bound or the tenant's, whichever is smaller."""
        return server if self.max_strength is None else min(server, self.max_strength)

    def kv_scope(self, owners: Mapping[str, str]) -> str:
        """Whose KV blocks a steered request may meet: "" for everybody's of the same effect, else its
        tenant's. ``owners`` maps each persona name of the request to the namespace it was found in."""
        if not self.isolated or all(
            owner == OPERATOR and name in self.shared_kv for name, owner in owners.items()
        ):
            return ""
        return self.name

    @property
    def plain_kv_scope(self) -> str:
        """The same for requests that nothing is added to."""
        return self.name if self.isolated_plain else ""
