"""Who asks: a tenant, as the registry, the store and the routes see it."""

from __future__ import annotations

from dataclasses import dataclass

OPERATOR = ""
"""The namespace of ``--palign-personas`` and of servers without tenants. What tenants share lives here."""


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

    def sees(self, owner: str, name: str) -> bool:
        """Whether persona ``name`` of the namespace ``owner`` is visible."""
        if owner == self.name:
            return True
        return owner == OPERATOR and (self.shared is None or name in self.shared)
