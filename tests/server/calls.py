"""The middleware and the gate before an application that only says what reached it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from tests.personas import random_persona
from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.admission.resolver import Resolver
from vllm_palign.config.store_url import private_store
from vllm_palign.registry import Registry
from vllm_palign.server.gate import Gate
from vllm_palign.server.middleware import STEERED_PATHS, PersonaMiddleware
from vllm_palign.shape import ModelShape
from vllm_palign.tenants.tenant import Tenant

SHAPE = {"num_layers": 3, "num_heads": 4, "head_dim": 8}
PATHS = (*STEERED_PATHS, "/tokenize", "/v1/messages", "/v1/messages/count_tokens", "/v1/audio")


class Models:
    """What the middleware reads of vLLM's served models, with a resolver that knows ``pirate``."""

    def __init__(self, *names: str) -> None:
        self.base_model_paths = [SimpleNamespace(name=name) for name in names]
        self.lora_requests: dict[str, Any] = {}
        self.lora_resolvers = [object()]
        self.asked: list[str] = []

    async def resolve_lora(self, name: str) -> None:
        self.asked.append(name)
        if name == "pirate":
            self.lora_requests[name] = object()


def application(front_end: FrontEnd, *names: str) -> FastAPI:
    """``received`` of its state are the bodies that reached the end, as bytes."""
    app = FastAPI()
    app.state.palign = front_end
    app.state.openai_serving_models = Models(*names)
    app.state.received = []

    async def take(request: Request) -> Response:
        try:
            app.state.received.append(await request.body())
        except ClientDisconnect:
            app.state.received.append(None)
        return Response("{}", media_type="application/json")

    for path in PATHS:
        app.post(path)(take)
    app.add_middleware(PersonaMiddleware)
    app.add_middleware(Gate)
    return app


def open_front_end(**personas: int) -> FrontEnd:
    registry = Registry(private_store())
    registry.migrate()
    for name, seed in personas.items():
        persona = random_persona(seed, **SHAPE, steered=5, name=name)
        registry.put(Tenant(), name, persona, persona.to_bytes())
    shape = ModelShape(**SHAPE, attention_layers=frozenset(range(3)), largest=3e38)
    resolver = Resolver(registry, shape, max_strength=3.0, cache_bytes=1 << 20)
    return FrontEnd(resolver, "base", over_http=True)


async def post(
    app: FastAPI,
    path: str,
    body: bytes,
    *,
    query: str = "",
    headers: dict[str, str] | None = None,
    chunk: int = 1 << 16,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the reply. ``body`` comes in pieces of ``chunk`` bytes."""
    path, _, given = path.partition("?")
    fields = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "scheme": "http",
        "root_path": "", "http_version": "1.1", "client": ("127.0.0.1", 1), "server": ("test", 80),
        "query_string": (given or query).encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items()],
    }  # fmt: skip
    pieces = [body[at : at + chunk] for at in range(0, len(body), chunk)] or [b""]
    last = len(pieces) - 1
    arriving = iter(
        [
            {"type": "http.request", "body": piece, "more_body": number < last}
            for number, piece in enumerate(pieces)
        ]
    )
    sent: list[Any] = []

    async def receive() -> Any:
        for message in arriving:
            return message
        await asyncio.Event().wait()
        return None

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    reply = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], reply, b"".join(message.get("body", b"") for message in sent[1:])


def ask(app: FastAPI, path: str, body: Any, **options: Any) -> tuple[int, dict[str, str], Any]:
    """``post`` of JSON, with the reply's JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, headers, reply = asyncio.run(post(app, path, content, **options))
    return status, headers, json.loads(reply) if reply else None
