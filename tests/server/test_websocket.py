"""Nothing that is said over a WebSocket is steered, so asking there ends it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from tests.server.calls import Models
from vllm_palign.server.middleware import PersonaMiddleware


def converse(*messages: dict[str, Any], query: bytes = b"") -> tuple[list[Any], list[Any]]:
    """(what the application heard, what the client was sent)."""
    heard: list[Any] = []
    sent: list[Any] = []
    arriving = iter(messages)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            heard.append(message)
            await send({"type": "websocket.send", "text": "heard"})
            if message["type"] == "websocket.disconnect":
                return

    async def receive() -> Any:
        return next(arriving, {"type": "websocket.disconnect", "code": 1000})

    async def send(message: Any) -> None:
        sent.append(message)

    resolver = SimpleNamespace(scope="answers")
    state = SimpleNamespace(
        openai_serving_models=Models("base"), palign=SimpleNamespace(resolver=resolver)
    )
    scope = {
        "type": "websocket", "path": "/v1/realtime", "query_string": query, "headers": [],
        "app": SimpleNamespace(state=state),
    }  # fmt: skip
    asyncio.run(PersonaMiddleware(application)(scope, receive, send))
    return heard, sent


def said(event: dict[str, Any]) -> dict[str, Any]:
    return {"type": "websocket.receive", "text": json.dumps(event)}


@pytest.mark.parametrize("query", [b"persona=alice", b"model=base@alice", b"%50ersonaId=alice"])
def test_a_query_that_asks_is_refused_before_anything_is_opened(query: bytes) -> None:
    heard, sent = converse(query=query)
    assert not heard
    assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 1008)]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "session.update", "persona": "alice"},
        {"type": "session.update", "model": "base@alice"},
        {"type": "session.update", "session": {"Persona": "alice"}},
        {"type": "session.update", "metadata": {"persona": "alice"}},
    ],
)
def test_a_message_that_asks_is_answered_with_an_error_and_the_end(event: dict[str, Any]) -> None:
    heard, sent = converse(said({"type": "hello"}), said(event))
    assert [message["type"] for message in heard] == ["websocket.receive", "websocket.disconnect"]
    error, close = sent[-2:]
    assert json.loads(error["text"])["code"] == "persona_invalid"
    assert (close["type"], close["code"]) == ("websocket.close", 1008)
    assert len(close["reason"].encode()) <= 123


def test_everything_else_is_heard() -> None:
    messages = (
        said({"type": "session.update", "model": "base"}),
        said({"type": "text", "text": '"persona" @', "persona": None}),
        {"type": "websocket.receive", "text": "persona, but no JSON"},
        {"type": "websocket.receive", "bytes": b"\xff@"},
    )
    heard, _ = converse(*messages, query=b"model=base&user=a@b")
    assert heard[:-1] == list(messages)
