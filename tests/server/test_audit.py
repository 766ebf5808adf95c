"""What the audit log says, and what it never says."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from vllm_palign.server import audit
from vllm_palign.server.gate import Gate

SECRET = "palign_0123456789ab_" + "s" * 43


@pytest.fixture
def lines() -> Iterator[list[str]]:
    written: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(record.getMessage())

    logger, handler = logging.getLogger("palign.audit"), Keep()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield written
    logger.removeHandler(handler)


def ask(method: str, path: str, **options: Any) -> httpx.Response:
    """One request through the gate of a server without tenants, to routes that answer as vLLM would."""

    async def generate(request: Request) -> Response:
        if (await request.body()) == b"bad":
            return JSONResponse({"error": {"message": "my prompt", "code": 400}}, status_code=400)
        raise AssertionError("a fault")

    async def persona(request: Request) -> Response:
        if request.method == "DELETE":
            error = {"message": "no 'bob'", "type": "", "param": None, "code": "persona_not_found"}
            return JSONResponse({"error": error}, status_code=404)
        request.scope["palign_digest"] = "a" * 64  # as management does
        return JSONResponse({"id": "bob", "fit": "x" * 10_000}, status_code=201)

    routes = [
        Route("/v1/completions", generate, methods=["POST"]),
        Route("/v1/personas/{id}", persona, methods=["PUT", "DELETE"]),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(Gate)
    app.state.palign = SimpleNamespace(tenants=None)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def test_a_management_call_is_one_line_with_its_digest(lines: list[str]) -> None:
    ask("PUT", "/v1/personas/bob?replace=true", content=b"x", headers={"x-request-id": "r-1"})
    (line,) = map(json.loads, lines)
    assert line.pop("time").endswith("+00:00")
    assert isinstance(line.pop("milliseconds"), int)
    assert line == {
        "event": "managed", "client": "127.0.0.1", "request_id": "r-1", "method": "PUT",
        "path": "/v1/personas/bob", "status": 201, "action": "put", "persona": "bob", "digest": "a" * 64,
    }  # fmt: skip


def test_a_refused_management_call_carries_its_code(lines: list[str]) -> None:
    ask("DELETE", "/v1/personas/bob")
    (line,) = map(json.loads, lines)
    assert (line["status"], line["code"], line["persona"]) == (404, "persona_not_found", "bob")


def test_a_refused_request_is_one_line_without_prompt_or_key(lines: list[str]) -> None:
    ask(
        "POST",
        "/v1/completions?key=" + SECRET,
        content=b"bad",
        headers={"authorization": f"Bearer {SECRET}", "x-request-id": "a\\nb"},
    )
    (line,) = lines
    record = json.loads(line)
    assert (record["event"], record["status"], record["code"]) == ("refused", 400, "http_400")
    assert "prompt" not in line
    assert SECRET[:20] not in line
    assert "request_id" not in record


def test_a_fault_of_the_server_is_a_line_too(lines: list[str]) -> None:
    ask("POST", "/v1/completions")
    assert json.loads(lines[0])["status"] == 500


def test_an_unknown_path_cannot_break_the_line_or_fill_the_disk(lines: list[str]) -> None:
    ask("GET", '/x%0a%00{"event":"managed"}%1b[2J' + "%e2%80%a8" * 500)
    (line,) = lines
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 4096
    assert len(json.loads(line)["path"]) == audit.MAX_FIELD


def test_texts_are_cut_and_absent_fields_left_out(lines: list[str]) -> None:
    audit.write("managed", {"a": "\n" * 5000, "b": None, "c": 7})
    (line,) = lines
    assert "\n" not in line
    record = json.loads(line)
    assert (len(record["a"]), record["c"], "b" in record) == (audit.MAX_FIELD, 7, False)
