"""Whose request is running.

The tenant travels beside the request in a context variable: vLLM runs a request's handler, and everything
up to its admission, in the context of the ASGI call, where no header or body field can reach it.
"""

from __future__ import annotations

from contextvars import ContextVar

from vllm_palign.errors import PalignStartupError
from vllm_palign.tenants.tenant import Tenant

_CURRENT: ContextVar[Tenant | None] = ContextVar("palign_caller", default=None)


def enter(tenant: Tenant) -> None:
    """Everything from here on in this context is a request of ``tenant``."""
    _CURRENT.set(tenant)


def current(*, tenants: bool) -> Tenant:
    """The tenant of the running request; ``Tenant()`` on a server without ``tenants``.

    Raises PalignStartupError when the server has tenants and the request did not come by the gate: an
    entry point it does not stand before must not answer as anybody.
    """
    if not tenants:
        return Tenant()
    tenant = _CURRENT.get()
    if tenant is None:
        raise PalignStartupError(
            "this server has tenants, but a request arrived without passing palign's gate; "
            "nothing is answered for unknown callers"
        )
    return tenant
