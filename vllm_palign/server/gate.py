"""Pure ASGI, outside everything else of palign: who is asking, may they, and what became of it."""

from __future__ import annotations

import json
import re
import time

from vllm_palign import metrics
from vllm_palign.errors import BodyTooLarge, PalignError, codes
from vllm_palign.persona import is_persona_id
from vllm_palign.selection import HEADER
from vllm_palign.server import allowed, audit
from vllm_palign.server.asgi import App, Message, Receive, Send, header_of, send_error
from vllm_palign.server.usage import Usage
from vllm_palign.tenants import caller
from vllm_palign.tenants.authenticator import Authenticator
from vllm_palign.tenants.tenant import Tenant

MAX_BODY = 64 * 1024 * 1024
"""Bytes of one request; images travel in bodies. vLLM itself has no bound."""
_KEPT = 8192
"""Bytes of a reply that are looked at for an error code."""
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class Gate:
    """Lets a tenant's requests in, counts them, and logs refusals and management calls.

    Without tenants nothing is kept out but bodies that are too large. What is counted and logged is what the client saw: status and
    error code are read off the reply.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        authenticator: Authenticator | None = scope["app"].state.palign.tenants
        if scope["type"] == "websocket":
            if authenticator is None:
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008, "reason": "not offered"})
            return
        path = allowed.route_path(scope)
        offered = path.rstrip("/") if allowed.leads_nowhere(scope) else path
        if scope["method"] in ("GET", "HEAD") and offered in allowed.OPEN:
            if path.startswith("/metrics"):
                await scope["app"].state.palign_gauges.refresh()
            await self.app(scope, receive, send)
            return
        reply = _Reply(send)
        usage = Usage()
        tenant = Tenant()
        started = time.monotonic()
        try:
            if authenticator is not None:
                tenant = authenticator.authenticate(scope["headers"])
                role = allowed.role_for(scope["method"], offered)
                if role is not None:
                    tenant.require(role)
            caller.enter(tenant)
            await self.app(scope, _bounded(receive, _announced(scope)), reply.send)
        except PalignError as error:
            if reply.started:
                raise
            await send_error(reply.send, error)
        finally:
            _account(scope, path, tenant, reply, usage, time.monotonic() - started)


def _announced(scope: Message) -> int:
    """Bytes of the body by its header; 0 where that does not say."""
    length = header_of(scope, b"content-length") or b""
    return int(length) if length.isdigit() and len(length) < 20 else 0


def _bounded(receive: Receive, announced: int) -> Receive:
    """Raises BodyTooLarge, to whoever reads, once it is known that there are more than MAX_BODY bytes."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        if announced <= MAX_BODY:
            message = await receive()
            seen += len(message.get("body", b""))
        if max(seen, announced) > MAX_BODY:
            raise BodyTooLarge(f"the body is larger than {MAX_BODY >> 20} MiB")
        return message

    return bounded


class _Reply:
    """Passes a reply on and remembers what the client saw of it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._body = b""
        self.started = False
        # Where nothing is sent, Starlette answers for the exception on its way up.
        self.status = 500
        self.steered = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            names = {name.lower() for name, _ in message.get("headers", [])}
            self.steered = HEADER.encode() in names
        elif len(self._body) < _KEPT:
            self._body += message.get("body", b"")[:_KEPT]
        await self._send(message)

    @property
    def code(self) -> str:
        """palign's code of an error, else ``http_STATUS``."""
        try:
            code = json.loads(self._body)["error"]["code"]
        except (ValueError, RecursionError, LookupError, TypeError):
            code = None
        return code if isinstance(code, str) and code in codes() else f"http_{self.status}"


def _account(
    scope: Message, path: str, tenant: Tenant, reply: _Reply, usage: Usage, seconds: float
) -> None:
    refused = reply.status >= 400
    if usage:
        metrics.tokens(tenant.label, prompt=usage.prompt, generated=usage.generated)
    if not refused and scope["method"] == "POST" and path in allowed.GENERATION:
        metrics.answered(tenant.label, steered=reply.steered)
    code = reply.code if refused else None
    if code is not None:
        metrics.refused(code)
    action = allowed.managed(scope["method"], path)
    if action is None and not refused:
        return
    fields = _common(scope, path, tenant, reply.status, seconds)
    if action is None:
        asked = scope.get("palign_asked")
        audit.write(
            "refused",
            {
                **fields,
                "code": code,
                "persona": asked and ",".join(name for name, _ in asked.parts),
                "scope": asked and asked.scope,
            },
        )
        return
    name = action[1]
    audit.write(
        "managed",
        {
            **fields,
            "action": action[0],
            "persona": name if is_persona_id(name) else None,
            "digest": scope.get("palign_digest"),
            "outcome": scope.get("palign_outcome"),
            "made_of": scope.get("palign_made_of"),
            "code": code,
        },
    )


def _common(
    scope: Message, path: str, tenant: Tenant, status: int, seconds: float
) -> dict[str, audit.Value]:
    request_ids = [value for name, value in scope["headers"] if name == b"x-request-id"]
    valid = len(request_ids) == 1 and _REQUEST_ID.fullmatch(request_ids[0])
    return {
        "tenant": (tenant.name or "operator") if tenant.key_id else None,
        "key_id": tenant.key_id or None,
        "client": (scope.get("client") or (None,))[0],
        "request_id": request_ids[0].decode() if valid else None,
        "method": scope["method"],
        "path": path,
        "status": status,
        "milliseconds": round(seconds * 1000),
    }
