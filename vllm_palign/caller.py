"""Who is asking: the tenant behind a request and what it may do.

The caller travels beside the request in a context variable: vLLM runs a request's handler, and everything
up to its admission, in the context of the ASGI call, and no header or body field can reach it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from vllm_palign.errors import PalignStartupError, PersonaForbidden

OPERATOR = "default"
"""The operator's own namespace: everybody's when there are no tenants; where shared personas live."""

USE = "use"
MANAGE = "manage"


@dataclass(frozen=True)
class Caller:
    """One API key's rights. ``tenant`` is a namespace of personas and, if ``isolated``, of KV blocks."""

    tenant: str
    roles: frozenset[str] = frozenset((USE, MANAGE))
    key_id: str = ""
    """Public half of the API key, for audit lines."""
    label: str = OPERATOR
    """The tenant's value in metrics: its name, or ``other`` beyond the bounded number of names."""
    max_strength: float | None = None
    """Bound of this tenant beside the server's own; None for no further bound."""
    max_personas: int | None = None
    """How many personas the tenant may have; None for no bound."""
    shared: Mapping[str, bool] = field(default_factory=dict)
    """Names of the operator's personas this tenant may use -> whether their KV may be shared."""
    isolated: bool = False
    """Whether KV blocks are kept apart from other tenants'."""
    isolated_plain: bool = False
    """The same for requests without a persona."""

    def places(self, name: str) -> tuple[str, ...]:
        """Namespaces to look ``name`` up in, in order; the first that has it wins."""
        if name in self.shared and self.tenant != OPERATOR:
            return (self.tenant, OPERATOR)
        return (self.tenant,)

    def require(self, role: str) -> None:
        """Raises PersonaForbidden when this key does not have ``role``."""
        if role not in self.roles:
            raise PersonaForbidden(
                f"this API key may not do that: it has the roles {', '.join(sorted(self.roles))}, "
                f"needed is {role!r}"
            )

    def strength_bound(self, server: float) -> float:
        """The largest strength allowed: the server's bound or the tenant's, whichever is smaller."""
        return server if self.max_strength is None else min(server, self.max_strength)

    def kv_scope(self, origins: Mapping[str, str]) -> str:
        """Whose KV blocks a steered request may meet: "" for everybody's with the same effect, else the
        tenant. ``origins`` maps each persona name of the request to the namespace it was found in."""
        if not self.isolated:
            return ""
        open_to_all = all(
            place == OPERATOR and self.shared.get(name, False) for name, place in origins.items()
        )
        return "" if origins and open_to_all else self.tenant


OPERATOR_CALLER = Caller(OPERATOR)
"""Everybody, when the server has no tenants."""

_CURRENT: ContextVar[Caller | None] = ContextVar("palign_caller", default=None)


def enter(caller: Caller) -> None:
    """Everything from here on in this context is ``caller``'s request."""
    _CURRENT.set(caller)


def current(*, tenants: bool) -> Caller:
    """The caller of the running request; without ``tenants`` the operator.

    Raises PalignStartupError when the server has tenants and the request came by no known caller: an
    entry point the gate is not in front of must not answer as anybody.
    """
    if not tenants:
        return OPERATOR_CALLER
    caller = _CURRENT.get()
    if caller is None:
        raise PalignStartupError(
            "this server has tenants, but a request reached admission without passing palign's gate; "
            "nothing is answered for unknown callers"
        )
    return caller
