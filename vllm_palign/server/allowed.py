"""What a server with tenants offers to whom. Everything that is not listed here is refused.

vLLM brings dozens of routes: for development (weights, caches, remote calls), for other servers (tokens in
and out, profiling, adapters), for stored responses that know no owner. A list of what is allowed does
not grow with them.
"""

from __future__ import annotations

import re

from vllm_palign.errors import MethodNotOffered, NotOffered
from vllm_palign.server.asgi import Message
from vllm_palign.tenants.tenant import Role

OPEN = frozenset(
    (
        "/health",
        "/ping",
        "/version",
        "/load",
        "/metrics",
        "/metrics/",
        "/docs",
        "/docs/oauth2-redirect",
        "/redoc",
        "/openapi.json",
    )
)
"""GET and HEAD without an API key, as in vLLM. What they show is the operator's, see docs/security.md."""

GENERATION = frozenset(
    ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/invocations")
)
"""POSTs that make the model write, as far as metrics count them."""

_PERSONA = re.compile(r"/v1/personas/(?P<id>[^/]{1,512})", re.ASCII)

_OFFERED: tuple[tuple[re.Pattern[str], dict[str, Role | None]], ...] = (
    (re.compile(r"/v1/(chat/completions|completions|responses|messages)"), {"POST": "use"}),
    (re.compile(r"/v1/messages/count_tokens|/tokenize|/detokenize"), {"POST": "use"}),
    (re.compile(r"/v1/models"), {"GET": None}),
    (re.compile(r"/v1/personas"), {"GET": None}),
    (re.compile(r"/v1/questionnaire"), {"GET": None}),
    (_PERSONA, {"GET": None, "PUT": "manage", "DELETE": "manage"}),
)
"""Path -> method -> the role it needs, None for any key. Matched against the whole path."""


def role_for(method: str, path: str) -> Role | None:
    """The role ``method path`` needs of a tenant's key. Raises NotOffered or MethodNotOffered."""
    for pattern, methods in _OFFERED:
        if pattern.fullmatch(path):
            if method not in methods:
                raise MethodNotOffered(f"{method} is not offered here, only {', '.join(methods)}")
            return methods[method]
    raise NotOffered("there is no such path for tenants on this server")


def managed(method: str, path: str) -> tuple[str, str | None] | None:
    """(action, persona id) of a management call, or None for any other request."""
    if path == "/v1/personas":
        return f"{method.lower()}_all", None
    match = _PERSONA.fullmatch(path)
    return (method.lower(), match["id"]) if match else None


def leads_nowhere(scope: Message) -> bool:
    """Whether no route takes this path as it is, because of a slash at its end: the router then redirects to the
    path without, or answers 404, and nothing of the request is looked at."""
    path = route_path(scope)
    if path == "/" or not path.endswith("/"):
        return False
    return not any(route.matches(scope)[0].value for route in scope["app"].router.routes)


def route_path(scope: Message) -> str:
    """The path as Starlette's router sees it: without the proxy's ``root_path``."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if root and path.startswith(root) and path[len(root) :].startswith("/"):
        return path[len(root) :]
    return path
