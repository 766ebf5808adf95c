"""ASGI's types, and an error as a reply."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vllm_palign.errors import PalignError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def header_of(scope: Message, name: bytes) -> bytes | None:
    """The first header of this name (lower case), as ASGI servers give them."""
    return next((value for key, value in scope["headers"] if key == name), None)


async def send_error(send: Send, error: PalignError) -> None:
    """Answer with ``error`` as an OpenAI error object, its status and its headers."""
    body = json.dumps(error.to_openai()).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **error.headers,
    }
    encoded = [(name.encode(), value.encode("ascii")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
