"""A real server: every spelling of asking is applied or refused, on every path, and stock requests stay stock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from tests.adapters import RANK, write_adapter
from tests.conftest import TINY_SERVER, Server, start_server, stop_server
from tests.http import speech
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
    """Answers to every model's name, and to a page of another origin."""
    log = tmp_path_factory.mktemp("server") / "lenient.log"
    running = start_server(
        tiny_model, log, "--plugin", "palign", "--palign-personas", str(tiny_personas[0]), *TINY_SERVER,
        "--allowed-origins", '["https://page.example"]', VLLM_SKIP_MODEL_NAME_VALIDATION="1",
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


def test_a_browser_may_read_the_header(lenient_server: Server) -> None:
    body = {"model": "base", "messages": MESSAGES, "max_tokens": 4, "persona": "p0"}
    headers = {"origin": "https://page.example"}
    reply = httpx.post(lenient_server.url + CHAT, json=body, headers=headers, timeout=60)
    assert reply.headers["access-control-allow-origin"] == "https://page.example"
    assert reply.headers["access-control-expose-headers"] == "x-palign-persona"


ADAPTERS = ("--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", "3")
"""One more than is loaded: vLLM on a CPU gives requests without an adapter the last slot's."""


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapter ``pirate``, for a resolver."""
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(reference, folder / "pirate", str(tiny_model))
    return folder


@pytest.fixture(scope="module")
def open_server(
    tiny_model: Path,
    tiny_personas: tuple[Path, dict[str, Persona]],
    adapters: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Loads adapters on first use and when told to; has a WebSocket and a path that takes forms."""
    folder = tmp_path_factory.mktemp("server")
    running = start_server(
        tiny_model, folder / "open.log", "--plugin", "palign", "--palign-personas", str(tiny_personas[0]),
        *ADAPTERS, *TINY_SERVER,
        **speech.install(folder / "plugin"), VLLM_PLUGINS="palign,speech,lora_filesystem_resolver",
        VLLM_LORA_RESOLVER_CACHE_DIR=str(adapters), VLLM_ALLOW_RUNTIME_LORA_UPDATING="1",
    )  # fmt: skip
    yield running
    stop_server(running)


def said(server: Server, **fields: Any) -> tuple[str, str]:
    """(what the server answers, whom it says it is)."""
    reply = server.post(CHAT, messages=MESSAGES, max_tokens=8, temperature=0, **fields)
    assert reply.status_code == 200, reply.text
    text = reply.json()["choices"][0]["message"]["content"]
    return text, reply.headers.get("x-palign-persona", "")


def listed(server: Server) -> list[str]:
    return [card["id"] for card in httpx.get(f"{server.url}/v1/models").json()["data"]]


def test_a_persona_of_an_adapter_that_is_loaded_on_first_use(open_server: Server) -> None:
    assert "pirate" not in listed(open_server)
    first = said(open_server, model="pirate@p0")
    assert "pirate" in listed(open_server)
    assert first == said(open_server, model="pirate", persona="p0")
    assert first[1].startswith("p0@")
    others = [said(open_server, model="pirate"), said(open_server, persona="p0")]
    assert first[0] not in [text for text, _ in others]
    unknown = open_server.post(CHAT, model="corsair@p0", messages=MESSAGES)
    assert unknown.status_code == 404
    assert unknown.json()["error"]["param"] == "model"


def test_an_adapter_that_is_named_like_a_persona_is_warned_of_and_listed_once(
    open_server: Server, adapters: Path
) -> None:
    adapter = {"lora_name": "base@p1", "lora_path": str(adapters / "pirate")}
    persona = said(open_server, model="base@p1")
    loaded = httpx.post(f"{open_server.url}/v1/load_lora_adapter", json=adapter, timeout=60)
    assert loaded.status_code == 200, loaded.text
    try:
        assert listed(open_server).count("base@p1") == 1
        answers = [said(open_server, model="base@p1") for _ in range(2)]
        assert answers[0] == answers[1] != persona
        assert answers[0][1] == "", "it is the adapter's name now"
        assert said(open_server, model="base@p1", persona="p1")[1].startswith("p1@")
    finally:
        httpx.post(f"{open_server.url}/v1/unload_lora_adapter", json=adapter, timeout=60)
    warning = "'base@p1' is the name of a model or an adapter here"
    assert open_server.log.read_text().count(warning) == 1
    assert said(open_server, model="base@p1") == persona
    assert listed(open_server).count("base@p1") == 1


UPLOAD = "/v1/audio/transcriptions"


@pytest.mark.parametrize(
    "fields",
    [{"persona": "p0"}, {"personaId": "p0"}, {"metadata[persona]": "p0"}, {"model": "base@p0"},
     {"metadata": '{"persona": "p0"}'}],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
@pytest.mark.parametrize("upload", [True, False], ids=["multipart", "urlencoded"])
def test_a_form_that_asks_is_an_error(
    open_server: Server, upload: bool, fields: dict[str, str]
) -> None:
    def post(**more: str) -> httpx.Response:
        files = {"file": ("hello.wav", b"RIFF persona")} if upload else None
        data = {"model": "base", **more}
        return httpx.post(open_server.url + UPLOAD, data=data, files=files, timeout=60)

    refused = post(**fields)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert error["code"] == "persona_invalid"
    assert error["type"] == "invalid_request_error" and error["message"].startswith("form.")
    stock = post()
    assert "persona" not in stock.text, "without, it is vLLM's to answer"


def test_a_web_socket_that_asks_is_not_opened(open_server: Server) -> None:
    url = open_server.url.replace("http", "ws") + "/v1/realtime"
    for query in ("?persona=p0", "?model=base@p0"):
        with pytest.raises(InvalidStatus) as refused, connect(url + query):
            pass
        assert refused.value.response.status_code == 403
    with connect(f"{url}?model=base", open_timeout=30) as socket:
        assert json.loads(socket.recv(10))["type"] == "session.created"


@pytest.mark.parametrize(
    "message",
    [{"model": "base@p0"}, {"model": "base", "persona": "p0"}, {"session": {"persona": "p0"}}],
    ids=["model", "beside the model", "session"],
)
def test_an_open_web_socket_that_asks_is_told_why_and_closed(
    open_server: Server, message: dict[str, Any]
) -> None:
    with connect(open_server.url.replace("http", "ws") + "/v1/realtime") as socket:
        assert json.loads(socket.recv(10))["type"] == "session.created"
        socket.send(json.dumps({"type": "session.update", "model": "base"}))
        socket.send(json.dumps({"type": "what"}))
        assert json.loads(socket.recv(10))["code"] == "unknown_event", "so far it is vLLM's"
        socket.send(json.dumps({"type": "session.update", **message}))
        answer = json.loads(socket.recv(10))
        assert (answer["type"], answer["code"]) == ("error", "persona_invalid")
        with pytest.raises(ConnectionClosedError) as closed:
            socket.recv(10)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
