"""Attempts of one tenant on another, and on the server: every one refused, by a real server."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.http.tenants.attempts import ATTEMPTS, NAMES, PERSONAS, SECRET
from tests.http.tenants.tenancy import Tenancy
from vllm_palign.persona import MAX_FILE_BYTES


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_is_refused(tenancy: Tenancy, name: str) -> None:
    attempt = ATTEMPTS[name]
    digest = tenancy.personas["p3"].digest
    request = attempt.request(tenancy.server.url, tenancy.keys, digest)
    reply = httpx.request(**request, timeout=120)
    assert reply.status_code == attempt.status, reply.text[:500]
    error = reply.json()["error"]
    if attempt.code is not None:
        assert error["code"] == attempt.code
        assert set(error) == {"message", "type", "param", "code"}
    assert "x-palign-persona" not in reply.headers
    said = reply.text.replace(request["url"].removeprefix(tenancy.server.url), "")
    assert digest[:12] not in said or attempt.path.endswith(SECRET) or name in NAMES
    assert tenancy.keys["globex"] not in reply.text


def test_there_are_enough_attempts() -> None:
    assert len(ATTEMPTS) >= 60


def test_another_tenants_persona_cannot_be_told_from_none(tenancy: Tenancy) -> None:
    def refusal(name: str, **options: Any) -> tuple[int, str, dict[str, str]]:
        reply = tenancy.complete("acme", persona=name, **options)
        headers = {key: value for key, value in reply.headers.items() if key != "date"}
        headers.pop("content-length")
        return reply.status_code, reply.text.replace(name, "NAME"), headers

    assert refusal("secret") == refusal("nobody")
    for method in ("GET", "DELETE"):
        replies = [tenancy.call("acme", method, f"{PERSONAS}/{n}") for n in ("secret", "nobody")]
        texts = {
            reply.text.replace("secret", "NAME").replace("nobody", "NAME") for reply in replies
        }
        assert len(texts) == 1
    # Also by taking the name: it is free for acme, and globex keeps its own.
    assert tenancy.put("acme", "secret", "p5").status_code == 201
    assert tenancy.put("acme", "secret", "p6", replace="true").status_code == 200
    assert tenancy.call("acme", "DELETE", f"{PERSONAS}/secret").status_code == 204


def test_a_body_without_a_length_is_bounded_too(tenancy: Tenancy) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range((MAX_FILE_BYTES >> 20) + 2):
            yield b"x" * (1 << 20)

    reply = tenancy.call("acme", "PUT", f"{PERSONAS}/x", content=chunks())
    assert reply.status_code == 413


def test_a_web_socket_is_not_offered(tenancy: Tenancy) -> None:
    url = urlsplit(tenancy.server.url)
    with socket.create_connection((url.hostname, url.port), timeout=10) as connection:
        connection.sendall(
            b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        assert connection.recv(64).startswith(b"HTTP/1.1 403")


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))  # fmt: skip
@given(
    name=st.text(min_size=1, max_size=12), place=st.sampled_from(["persona", "metadata", "model"])
)
def test_no_text_reaches_anybody_elses_persona(tenancy: Tenancy, name: str, place: str) -> None:
    fields: dict[str, Any] = {
        "persona": {"persona": name},
        "metadata": {"metadata": {"persona": name}},
        "model": {"model": f"base@{name}"},
    }[place]
    reply = tenancy.complete("acme-use", **fields)
    if name in ("own", "lent", "open"):
        return
    assert reply.status_code in (400, 404), reply.text


def test_the_management_routes_keep_what_their_openapi_says(tenancy: Tenancy) -> None:
    """schemathesis: made from the schema and against it; status, content type and body must conform."""
    headers = {"authorization": f"Bearer {tenancy.keys['acme']}"}
    schema = schemathesis.openapi.from_url(f"{tenancy.server.url}/openapi.json")
    tried = 0
    for operation in schema.include(
        path_regex=r"^/v1/(personas|models|questionnaire)"
    ).get_all_operations():
        case_strategy = operation.ok().as_strategy()

        @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=case_strategy)
        def conforms(case: Any) -> None:
            # That bytes are a persona file is more than a schema can say.
            excluded = [positive_data_acceptance] if case.method == "PUT" else []
            case.call_and_validate(headers=headers, excluded_checks=excluded)

        conforms()
        tried += 1
    assert tried == 6


def test_a_management_call_is_an_audit_line_with_its_tenant_and_digest(tenancy: Tenancy) -> None:
    tenancy.put("acme", "audited", "p5")
    tenancy.put("acme", "audited", "p6", replace="true")
    tenancy.call("acme", "DELETE", f"{PERSONAS}/audited")
    for _ in range(50):  # a line is written once its answer is on the way
        lines = [line for line in tenancy.log("managed") if line.get("persona") == "audited"]
        if len(lines) == 3:
            break
        time.sleep(0.1)
    assert [(line["action"], line["status"], line["digest"]) for line in lines] == [
        ("put", 201, tenancy.personas["p5"].digest),
        ("put", 200, tenancy.personas["p6"].digest),
        ("delete", 204, tenancy.personas["p6"].digest),
    ]
    key_id = tenancy.keys["acme"].split("_")[1]
    assert {(line["tenant"], line["key_id"]) for line in lines} == {("acme", key_id)}


def test_after_every_attempt_everything_is_as_it_was(tenancy: Tenancy) -> None:
    before = len(tenancy.log("refused"))
    for attempt in ATTEMPTS.values():
        request = attempt.request(tenancy.server.url, tenancy.keys, tenancy.personas["p3"].digest)
        httpx.request(**request, timeout=120)
    secret = tenancy.call("globex", "GET", f"{PERSONAS}/secret").json()
    assert secret["digest"] == tenancy.personas["p3"].digest
    assert tenancy.complete("globex", persona="secret").status_code == 200
    owned = tenancy.call("acme", "GET", PERSONAS).json()["data"]
    assert [entry["id"] for entry in owned] == ["lent", "open", "own"]
    refused = tenancy.log("refused")
    assert len(refused) - before > len(ATTEMPTS) / 2
    text = tenancy.server.log.read_text()
    for key in tenancy.keys.values():
        assert key.split("_", 2)[2] not in text
