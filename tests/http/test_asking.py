"""A real server: every spelling of asking is applied or refused, on every path, and stock requests stay stock."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import TINY_SERVER, Server, start_server, stop_server
from vllm_palign import Persona

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]

SLIPS: dict[str, tuple[str, dict[str, Any]]] = {
    "strength beside the persona": (CHAT, {"persona": "p0", "strength": 2}),
    "mix beside the persona": (CHAT, {"persona": "p0", "mix": {"p1": 1}}),
    "scope beside the persona": (CHAT, {"persona": "p0", "scope": "all"}),
    "strength in metadata": (CHAT, {"metadata": {"persona": "p0", "strength": "2"}}),
    "persona in xargs": (CHAT, {"vllm_xargs": {"persona": "p0"}}),
    "metadata in extra_body": (CHAT, {"extra_body": {"metadata": {"persona": "p0"}}}),
    "model in extra_body": (CHAT, {"extra_body": {"model": "base@p0"}}),
    "capitals": (CHAT, {"PERSONA": "p0"}),
    "camel case": (CHAT, {"personaId": "p0"}),
    "a capital in metadata": (CHAT, {"metadata": {"Persona": "p0"}}),
    "query": (f"{CHAT}?persona=p0", {}),
    "messages with a listed model": ("/v1/messages", {"model": "base@p0"}),
    "invocations with a listed model": ("/invocations", {"model": "base@p0"}),
    "rendering with a listed model": (f"{CHAT}/render", {"model": "base@p0"}),
    "invocations with an adapter's header": ("/invocations", {}),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_an_error_and_never_a_plain_answer(tiny_server: Server, slip: str) -> None:
    path, more = SLIPS[slip]
    headers = {"X-Amzn-SageMaker-Adapter-Identifier": "base@p0"} if "header" in slip else {}
    body = {"model": "base", "messages": MESSAGES, "max_tokens": 4, **more}
    reply = httpx.post(tiny_server.url + path, json=body, headers=headers, timeout=60)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["code"] == "persona_invalid"
    assert "x-palign-persona" not in reply.headers


@pytest.mark.parametrize(
    "persona",
    [
        {"persona": {"id": "p0", "strength": None}},
        {"persona": {"mix": {"p0": 1}, "id": None, "scope": None}},
        {"metadata": {"persona": "p0", "persona_strength": None}},
        {"persona": "p0", "metadata": {"persona": None}, "strength": None, "PERSONA": None},
        {"persona": "p0", "vllm_xargs": None},
    ],
)
def test_null_is_not_there(tiny_server: Server, persona: dict[str, Any]) -> None:
    asked = tiny_server.post(CHAT, messages=MESSAGES, max_tokens=4, temperature=0, **persona)
    assert asked.status_code == 200, asked.text
    plain = tiny_server.post(CHAT, messages=MESSAGES, max_tokens=4, temperature=0)
    same = tiny_server.post(CHAT, messages=MESSAGES, max_tokens=4, temperature=0, persona="p0")
    texts = [reply.json()["choices"][0]["message"]["content"] for reply in (asked, same, plain)]
    assert asked.headers["x-palign-persona"] == same.headers["x-palign-persona"]
    assert texts[0] == texts[1] != texts[2]


def test_words_of_ours_in_fields_of_others_change_nothing(tiny_server: Server) -> None:
    schema = {"type": "object", "properties": {"persona": {"type": "string"}, "strength": {}}}
    reply = tiny_server.post(
        CHAT, messages=MESSAGES, max_tokens=4, chat_template_kwargs={"persona": "pirate"},
        tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}], tool_choice="none",
        metadata={"personality": "warm", "user_strength": "2", "scope": "a@b"}, strength=2,
    )  # fmt: skip
    assert reply.status_code == 200, reply.text
    assert "x-palign-persona" not in reply.headers


def test_tokens_are_counted_under_the_name_that_was_listed(tiny_server: Server) -> None:
    def answers(model: str) -> list[Any]:
        tokens = tiny_server.post("/tokenize", model=model, prompt="Hello there")
        text = tiny_server.post("/detokenize", model=model, tokens=[1, 2, 3])
        count = tiny_server.post("/v1/messages/count_tokens", model=model, messages=MESSAGES)
        replies = (tokens, text, count)
        assert all("x-palign-persona" not in reply.headers for reply in replies)
        return [(reply.status_code, reply.json()) for reply in replies]

    assert answers("base@p0") == answers("base")
    assert {status for status, _ in answers("base")} == {200}
    assert {status for status, _ in answers("other@p0")} == {404}


def test_a_slash_at_the_end_redirects_and_the_persona_is_applied_there(tiny_server: Server) -> None:
    body = {"model": "base", "messages": MESSAGES, "max_tokens": 4, "persona": "p0"}
    first = httpx.post(f"{tiny_server.url}{CHAT}/", json=body)
    assert first.status_code == 307
    assert urlsplit(first.headers["location"]).path == CHAT
    reply = httpx.post(f"{tiny_server.url}{CHAT}/", json=body, follow_redirects=True, timeout=60)
    assert reply.headers["x-palign-persona"].startswith("p0@")


def test_a_browser_may_read_the_header(tiny_server: Server) -> None:
    body = {"model": "base", "messages": MESSAGES, "max_tokens": 4, "persona": "p0"}
    headers = {"origin": "https://page.example"}
    reply = httpx.post(tiny_server.url + CHAT, json=body, headers=headers, timeout=60)
    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["access-control-expose-headers"] == "x-palign-persona"


def test_a_web_socket_that_asks_is_not_opened(tiny_server: Server) -> None:
    url = urlsplit(tiny_server.url)
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(
            b"GET /v1/realtime?persona=p0 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert connection.recv(64).startswith(b"HTTP/1.1 403")


def test_a_body_beyond_the_bound_is_refused(tiny_server: Server) -> None:
    body = b'{"model": "base", "prompt": "' + b"x" * (64 << 20) + b'"}'
    reply = httpx.post(
        f"{tiny_server.url}/v1/completions", content=body, timeout=60,
        headers={"content-type": "application/json"},
    )  # fmt: skip
    assert reply.status_code == 413
    assert reply.json()["error"]["code"] == "body_too_large"


def test_a_request_of_eight_megabytes_is_steered(tiny_server: Server) -> None:
    filling = json.dumps([{"text": '\u00e4 "quoted" @'}] * 200_000)
    body = '{"model": "base", "prompt": "Once", "max_tokens": 2, "unknown": ' + filling
    reply = httpx.post(
        f"{tiny_server.url}/v1/completions", content=(body + ', "persona": "p0"}').encode(),
        headers={"content-type": "application/json"}, timeout=60,
    )  # fmt: skip
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-palign-persona"].startswith("p0@")


@pytest.fixture(scope="module")
def lenient_server(
    tiny_model: Path,
    tiny_personas: tuple[Path, dict[str, Persona]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Answers to every model's name."""
    log = tmp_path_factory.mktemp("server") / "lenient.log"
    running = start_server(
        tiny_model, log, "--plugin", "palign", "--palign-personas", str(tiny_personas[0]), *TINY_SERVER,
        VLLM_SKIP_MODEL_NAME_VALIDATION="1",
    )  # fmt: skip
    yield running
    stop_server(running)


@pytest.mark.parametrize("model", ["gpt-4o@p0", "openai/base@p0", "BASE@p0", "base@p0"])
def test_a_server_that_answers_to_every_name_applies_the_suffix(
    lenient_server: Server, model: str
) -> None:
    def text(**fields: Any) -> tuple[str, str]:
        reply = lenient_server.post(CHAT, messages=MESSAGES, max_tokens=4, temperature=0, **fields)
        assert reply.status_code == 200, reply.text
        name = reply.headers.get("x-palign-persona", "")
        return reply.json()["choices"][0]["message"]["content"], name

    assert text(model=model) == text(persona="p0")
    assert text(model=model) != text(model="gpt-4o")
    for path in ("/v1/messages", "/invocations"):
        refused = lenient_server.post(path, model=model, messages=MESSAGES, max_tokens=4)
        assert refused.status_code == 400
    unknown = lenient_server.post(CHAT, model="gpt-4o@nobody", messages=MESSAGES, max_tokens=4)
    assert unknown.status_code == 404
    assert lenient_server.post("/tokenize", model=model, prompt="x").status_code == 200
