"""Media that a tenant's client names: nobody must reach another's image by its name."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_palign import PersonaForbidden
from vllm_palign.server.media import may_name_media, refuse_named_media
from vllm_palign.server.middleware import PersonaMiddleware


def image(**fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}, **fields}


def body(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": list(parts)}], **fields}


NAMED = {
    "beside the url": json.dumps(body(image(uuid="x"))).encode(),
    "without the image": json.dumps(body({"type": "image_url", "uuid": "x"})).encode(),
    "inside": json.dumps(body({"type": "image_url", "image_url": {"uuid": "x"}})).encode(),
    "without blanks": json.dumps(body(image(uuid="x")), separators=(",", ":")).encode(),
    "in lines": json.dumps(body(image(uuid="x")), indent=1).replace('":', '" \n:\t').encode(),
    "escaped": json.dumps(body(image(uuid="x"))).replace('"uuid"', '"\\u0075u\\u0069d"').encode(),
    "UTF-16": json.dumps(body(image(uuid="x"))).encode("utf-16"),
    "UTF-32, no mark": json.dumps(body(image(uuid="x"))).encode("utf-32-be"),
    "Responses": json.dumps({"input": [{"content": [image(uuid="x")]}]}).encode(),
    "one content part": json.dumps({"messages": [{"content": image(uuid="x")}]}).encode(),
}
HARMLESS = {
    "null": body(image(uuid=None)),
    "a text": body({"type": "text", "text": 'what is a "uuid": "x"? {"uuid": "x"}'}),
    "metadata": body(image(), metadata={"uuid": "x"}),
    "a tool": body(tools=[{"function": {"parameters": {"properties": {"uuid": {"type": "string"}}}}}]),
    "arguments": {"messages": [{"tool_calls": [{"function": {"arguments": '{"uuid": "x"}'}}]}]},
    "no object": ["uuid"],
}  # fmt: skip


NAMED["far behind, cut in two by windows"] = (
    b'{"messages": [{"content": [{"text": "' + b"x" * 65_000 + b'"}, ' + b" " * 480 + b'{"uuid"' + b" " * 200_000 + b': "x"}]}]}'
)  # fmt: skip


def refuse(data: bytes) -> None:
    if may_name_media(data):
        refuse_named_media(data)


@pytest.mark.parametrize("where", NAMED)
def test_a_name_is_refused_wherever_vllm_would_read_it(where: str) -> None:
    with pytest.raises(PersonaForbidden, match="leave it out"):
        refuse(NAMED[where])


@pytest.mark.parametrize("what", HARMLESS)
def test_the_word_elsewhere_is_nobodys_business(what: str) -> None:
    refuse(json.dumps(HARMLESS[what]).encode())


def test_bodies_without_such_a_key_are_not_read() -> None:
    assert not may_name_media(b'{"messages": [{"content": "a \\"uuid\\": \\"x\\" and \\u00fc"}]}')
    assert not may_name_media(
        b'{"tools": [{"type": "string", "format": "uuid"}, {"format" : "uuid" }]}'
    )
    assert not may_name_media(b"x" * (1 << 20))


@pytest.mark.parametrize(("tenants", "status"), [(object(), 403), (None, None)])
def test_only_tenants_are_refused(tenants: Any, status: int | None) -> None:
    passed: list[str] = []
    sent: list[dict[str, Any]] = []

    async def app(*_: Any) -> None:
        passed.append("vLLM")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": NAMED["beside the url"], "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    state = SimpleNamespace(palign=SimpleNamespace(tenants=tenants))
    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [],
        "app": SimpleNamespace(state=state, router=SimpleNamespace(routes=[])),
    }  # fmt: skip
    asyncio.run(PersonaMiddleware(app)(scope, receive, send))
    assert passed == ([] if status else ["vLLM"])
    assert [message["status"] for message in sent if "status" in message] == (
        [status] if status else []
    )
