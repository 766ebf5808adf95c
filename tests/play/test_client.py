"""The HTTP side: what is sent, and what becomes of replies. Real servers answer in the browser's tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from tests.play.conftest import in_thread
from vllm_palign.cli.main import app
from vllm_palign.play.client import Piece, Server, Trouble


def server(reply: Callable[[httpx.Request], httpx.Response], key: str = "") -> Server:
    made = Server("http://palign.test/v1/", key)
    made._http = httpx.AsyncClient(base_url=made.url, transport=httpx.MockTransport(reply))
    return made


def error(
    status: int, code: str = "", message: str = ""
) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(status, json={"error": {"code": code, "message": message}})


def refused(work: Any) -> Trouble:
    with pytest.raises(Trouble) as caught:
        in_thread(work)
    return caught.value


def test_the_key_of_the_tab_goes_before_that_of_the_command_and_both_into_the_header_only() -> None:
    seen = []

    def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"data": [{"id": "m"}]})

    for tab, wanted in (("", "Bearer command"), (" tab ", "Bearer tab")):
        assert in_thread(server(reply, "command").model(tab)) == "m"
        assert seen[-1].headers["authorization"] == wanted
        assert str(seen[-1].url) == "http://palign.test/v1/models"
    in_thread(server(reply).model(""))
    assert "authorization" not in seen[-1].headers


class _Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "m"}]}')


def test_no_proxy_stands_between_the_page_and_a_server_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with HTTPServer(("127.0.0.1", 0), _Models) as there:
        Thread(target=there.handle_request).start()
        assert in_thread(Server(f"http://127.0.0.1:{there.server_port}").model("")) == "m"
    assert refused(Server("http://palign.test").model("")).status is None


def test_an_id_cannot_lead_to_another_path() -> None:
    paths = []

    def reply(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        return httpx.Response(200, json={})

    for name in ("../../v1/models?x=#y", ".", "..", "", "a/b", "%2e%2e"):
        assert "cannot be a persona's name" in refused(server(reply).persona("", name)).sentence
    assert paths == []


def test_whether_one_may_make_personas_is_asked_with_an_id_that_nothing_can_have() -> None:
    asked = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path))
        return error(400, "persona_invalid", "id: got '-'")(request)

    in_thread(server(reply).may_make(""))
    assert asked == [("PUT", "/v1/personas/-")]
    assert (
        refused(server(error(403, "persona_forbidden", "no role 'manage'")).may_make("")).status
        == 403
    )
    assert (
        refused(server(error(501, "directions_missing")).may_make("")).code == "directions_missing"
    )


def test_a_file_that_the_server_keeps_to_itself_is_none() -> None:
    def text(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"id": "alice"})

    def file(request: httpx.Request) -> httpx.Response:
        assert request.headers["accept"] == "application/octet-stream"
        return httpx.Response(
            200, content=b"x", headers={"content-type": "application/octet-stream"}
        )

    assert in_thread(server(text).file("", "alice")) is None
    assert in_thread(server(error(403)).file("", "alice")) is None
    assert in_thread(server(file).file("", "alice")) == b"x"
    assert refused(server(error(404, "persona_not_found", "gone")).file("", "alice")).status == 404


@pytest.mark.parametrize(
    "content", [b"<html>", b"[]", b"", b"{}"], ids=["a web page", "a list", "nothing", "an object"]
)
def test_what_is_no_palign_server_is_said_so(content: bytes) -> None:
    strange = server(lambda _: httpx.Response(200, content=content))
    for asked in (strange.model(""), strange.personas("")):
        assert "http://palign.test" in refused(asked).sentence


@pytest.mark.parametrize("url", ["http://127.0.0.1:abc", "http://[::1", "http://:80", "palign.example", "http://u:p@h"])  # fmt: skip
def test_an_address_that_is_none_is_a_usage_error(url: str) -> None:
    done = CliRunner().invoke(app, ["play", "--server", url])
    assert done.exit_code == 2 and "--server" in done.output


def test_a_server_that_is_not_there_is_no_stack_trace() -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    trouble = refused(server(reply).model(""))
    assert trouble.status is None and "does not answer" in trouble.sentence


async def said(made: Server) -> list[Piece]:
    return [piece async for piece in made.chat("", {"model": "m"})]


def stream(*events: object) -> Callable[[httpx.Request], httpx.Response]:
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return lambda _: httpx.Response(
        200, text=text, headers={"x-palign-persona": "alice@0;strength=1.0;scope=all"}
    )


def test_a_stream_is_its_header_its_text_and_its_count_of_tokens() -> None:
    pieces = in_thread(said(server(stream(
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"content": "Hé"}}]},
        {"choices": [{"delta": {"content": None}}]},
        {"choices": [], "usage": {"completion_tokens": 7}},
    ))))  # fmt: skip
    assert pieces == [
        Piece(header="alice@0;strength=1.0;scope=all"), Piece(text="Hé"), Piece(tokens=7)
    ]  # fmt: skip


def test_an_error_in_the_middle_of_a_stream_is_a_sentence() -> None:
    events = (
        {"choices": [{"delta": {"content": "a"}}]},
        {"error": {"code": 500, "message": "engine died"}},
    )
    assert (
        refused(said(server(stream(*events)))).sentence == "The server failed (500). Engine died."
    )
    assert "Is the address right?" in refused(said(server(stream([1])))).sentence
    assert refused(said(server(error(503, "registry_unavailable")))).status == 503
