"""Tenants on a real server: what each sees, uses and manages, and whose KV blocks meet."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from openai import AuthenticationError, NotFoundError
from typer.testing import CliRunner

from tests.http.tenants.tenancy import Tenancy, new_key
from vllm_palign.cli.main import app


def models(tenancy: Tenancy, who: str) -> list[str]:
    return [model.id for model in tenancy.openai(who).models.list()]


def test_each_tenant_lists_its_own_and_what_is_shared_with_it(tenancy: Tenancy) -> None:
    assert models(tenancy, "acme") == ["base", "base@lent", "base@open", "base@own"]
    assert models(tenancy, "globex") == ["base", "base@lent", "base@open", "base@secret"]
    assert models(tenancy, "operator") == ["base", "base@kept", "base@lent", "base@open"]
    listed = tenancy.call("acme", "GET", "/v1/personas").json()["data"]
    assert [(entry["id"], entry["shared"]) for entry in listed] == [
        ("lent", True), ("open", True), ("own", False),
    ]  # fmt: skip


def test_the_api_key_of_the_openai_client_is_enough(tenancy: Tenancy) -> None:
    raw = tenancy.openai("acme").completions.with_raw_response.create(
        model="base@own", prompt="Hello", max_tokens=2
    )
    assert raw.headers["x-palign-persona"].startswith("own@" + tenancy.personas["p4"].digest[:12])
    with pytest.raises(NotFoundError):
        tenancy.openai("globex").completions.create(model="base@own", prompt="Hello", max_tokens=2)
    with pytest.raises(AuthenticationError) as caught:
        tenancy.openai("acme").with_options(api_key="sk-nobody").models.list()
    assert caught.value.code == "invalid_api_key"


def test_one_name_is_two_personas_for_two_tenants(tenancy: Tenancy) -> None:
    """And an own persona hides a shared one of the same name."""
    for who, persona in (("acme", "p5"), ("globex", "p6")):
        assert tenancy.put(who, "twin", persona).status_code == 201
    assert tenancy.put("acme", "lent", "p6").status_code == 201
    try:
        for who, name, persona in (
            ("acme", "twin", "p5"),
            ("globex", "twin", "p6"),
            ("acme", "lent", "p6"),
            ("globex", "lent", "p0"),
        ):
            header = tenancy.complete(who, persona=name).headers["x-palign-persona"]
            assert header.startswith(f"{name}@{tenancy.personas[persona].digest[:12]};")
        assert tenancy.put("acme", "one-more", "p7").json()["error"]["code"] == "persona_forbidden"
    finally:
        for who, name in (("acme", "twin"), ("globex", "twin"), ("acme", "lent")):
            assert tenancy.call(who, "DELETE", f"/v1/personas/{name}").status_code == 204
    assert tenancy.complete("acme", persona="lent").status_code == 200


def test_a_tenants_own_bound_of_strength_counts(tenancy: Tenancy) -> None:
    strong = {"id": "lent", "strength": 2.5}
    refused = tenancy.complete("acme", persona=strong)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "persona_invalid")
    assert tenancy.complete("globex", persona=strong).status_code == 200


def cached(tenancy: Tenancy, who: str, prompt: str, **fields: object) -> int:
    usage = tenancy.complete(who, prompt=prompt, **fields).json()["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"] or 0)


@pytest.mark.parametrize(
    ("fields", "meet"),
    [
        ({}, False),
        ({"persona": "lent"}, False),
        ({"persona": {"id": "lent", "scope": "all"}}, False),
        ({"persona": {"id": "open", "scope": "all"}}, True),
        # Its prompt is a plain one of the tenant's.
        ({"persona": "open"}, False),
        ({"persona": {"id": "lent", "strength": 0}}, False),
        ({"persona": {"mix": {"lent": 0.5, "open": 0.5}, "scope": "all"}}, False),
        ({"cache_salt": "agreed"}, False),
        ({"persona": {"id": "open", "scope": "all"}, "cache_salt": "agreed"}, True),
    ],
    ids=[
        "plain", "lent", "lent, all", "shared KV", "shared KV, answers", "strength 0", "blend", "salt",
        "shared KV and salt",
    ],
)  # fmt: skip
def test_tenants_meet_in_the_kv_cache_only_where_the_operator_allows(
    tenancy: Tenancy, fields: dict[str, object], meet: bool
) -> None:
    prompt = f"{fields}: a long story. " + "And then, and then, and then. " * 8
    assert cached(tenancy, "acme", prompt, **fields) == 0
    assert cached(tenancy, "acme", prompt, **fields) > 0
    assert (cached(tenancy, "globex", prompt, **fields) > 0) == meet
    assert cached(tenancy, "globex", prompt, **fields) > 0


def test_a_prompt_is_shared_by_the_personas_of_one_tenant_and_its_plain_requests(
    tenancy: Tenancy,
) -> None:
    prompt = "What all of one house read. " * 12
    assert cached(tenancy, "acme", prompt) == 0
    for persona in ("own", "lent", "open", {"mix": {"own": 0.5, "lent": 0.5}}):
        assert cached(tenancy, "acme", prompt, persona=persona) > 0
    assert cached(tenancy, "acme", prompt, persona="own", cache_salt="of mine") == 0
    assert cached(tenancy, "globex", prompt, persona="lent") == 0


MESSAGES = [{"role": "user", "content": "Hello"}]
OFFERED = {
    "/v1/completions": {"prompt": ["a", "b"], "stream": True},
    "/v1/chat/completions": {"messages": MESSAGES, "n": 2},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 2},
    "/v1/messages": {"messages": MESSAGES},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/tokenize": {"prompt": "Hello"},
    "/detokenize": {"tokens": [1, 2]},
}


@pytest.mark.parametrize("path", OFFERED)
def test_what_tenants_are_offered_answers_them(tenancy: Tenancy, path: str) -> None:
    """The caller is known wherever vLLM admits a request, or it would be refused."""
    body = {"model": "base", "max_tokens": 2, **OFFERED[path]}
    reply = tenancy.call("acme-use", "POST", path, json=body)
    assert reply.status_code == 200, reply.text
    assert "error" not in reply.text.replace('"error":null', "").replace('"error": null', "")


@pytest.mark.shows("refusals", "media that a tenant's client names (`uuid`)")
def test_media_that_a_client_names_is_refused(
    tenancy: Tenancy, record_property: Callable[[str, object], None]
) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}, "uuid": "x"}
    messages = [{"role": "user", "content": [image]}]
    for who in ("acme", "operator"):
        body = {"model": "base", "messages": messages}
        reply = tenancy.call(who, "POST", "/v1/chat/completions", json=body)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (403, "persona_forbidden")
        record_property("said", error["message"])


def test_a_slash_at_the_end_redirects_a_tenant_and_its_key_counts_there(tenancy: Tenancy) -> None:
    path, body = "/v1/chat/completions", {"model": "base", "messages": MESSAGES, "max_tokens": 4}
    body |= {"persona": "own", "temperature": 0}
    first = tenancy.call("acme", "POST", f"{path}/", json=body)
    assert (first.status_code, urlsplit(first.headers["location"]).path) == (307, path)
    answers = [
        tenancy.call("acme", "POST", at, json=body, follow_redirects=True)
        for at in (f"{path}/", path)
    ]
    texts = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
    names = {answer.headers["x-palign-persona"] for answer in answers}
    assert len(texts) == len(names) == 1
    assert names.pop().startswith("own@")
    others = [
        tenancy.call(who, "POST", f"{path}/", json=body, follow_redirects=True)
        for who in ("globex", None)
    ]
    assert [other.status_code for other in others] == [404, 401]


def test_the_same_bytes_of_two_tenants_do_not_meet(tenancy: Tenancy) -> None:
    assert tenancy.put("globex", "copy", "p4").status_code == 201
    prompt = "The same persona under another roof. " * 12
    assert cached(tenancy, "acme", prompt, persona="own") == 0
    assert cached(tenancy, "acme", prompt, persona="own") > 0
    assert cached(tenancy, "globex", prompt, persona="copy") == 0
    assert tenancy.call("globex", "DELETE", "/v1/personas/copy").status_code == 204


def test_keys_come_and_go_while_the_server_runs(tenancy: Tenancy) -> None:
    tenancy.keys["new"] = new_key(tenancy.file, "acme")
    wait_for(tenancy, "new", 200)
    good = tenancy.file.read_text()
    tenancy.file.write_text("tenants: [half a fi")
    time.sleep(2.5)
    assert {tenancy.complete("new").status_code for _ in range(6)} == {200}
    tenancy.file.write_text(good)
    key_id = tenancy.keys["new"].split("_")[1]
    CliRunner().invoke(app, ["tenants", "revoke", key_id, "--file", str(tenancy.file)])
    wait_for(tenancy, "new", 401)
    assert tenancy.complete("acme").status_code == 200


def wait_for(tenancy: Tenancy, who: str, status: int) -> None:
    """Both API server processes have seen the change: ten new connections in a row say so."""
    agreed = 0
    for _ in range(300):
        agreed = agreed + 1 if tenancy.complete(who).status_code == status else 0
        if agreed == 10:
            return
        time.sleep(0.05)
    raise AssertionError(f"{who} never got {status}")
