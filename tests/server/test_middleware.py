"""Asked for is applied or refused, in every place and every spelling; everything else passes as it came."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from fastapi import FastAPI

from tests.personas import random_persona
from tests.server.calls import SHAPE, application, ask, open_front_end, post
from vllm_palign import PersonaInvalid
from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.server import forms, gate, served
from vllm_palign.tenants.tenant import Tenant

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def front_end() -> Iterator[FrontEnd]:
    yield open_front_end(alice=0, bob=1)


@pytest.fixture
def app(front_end: FrontEnd) -> FastAPI:
    return application(front_end, "SmolLM2", "odd@alice")


def fields(app: FastAPI) -> dict[str, Any]:
    received = json.loads(app.state.received[-1])
    assert isinstance(received, dict)
    return received


APPLIED: dict[str, dict[str, Any]] = {
    "field": {"persona": "alice"},
    "object": {"persona": {"id": "alice", "strength": 1}},
    "object with nulls": {"persona": {"id": "alice", "strength": None, "mix": None, "scope": None}},
    "blend with nulls": {"persona": {"mix": {"alice": 1}, "id": None}},
    "metadata": {"metadata": {"persona": "alice", "user_strength": "3", "personality": "warm"}},
    "metadata with null": {"metadata": {"persona": "alice", "persona_strength": None, "Persona": None}},
    "model": {"model": "SmolLM2@alice"},
    "all": {"model": "SmolLM2@alice", "persona": "alice", "metadata": {"persona": "alice"}},
    "beside nulls": {"persona": "alice", "strength": None, "mix": None, "extra_body": None, "vllm_xargs": None},
    "beside its own xargs": {"persona": "alice", "vllm_xargs": {"watermark": 3}},
    "beside empty xargs": {"vllm_xargs": {}, "persona": "alice"},
    "a template's variable": {"persona": "alice", "chat_template_kwargs": {"persona": "x", "strength": 1}},
}  # fmt: skip


@pytest.mark.parametrize("case", APPLIED)
def test_what_is_applied_reaches_vllm_as_a_grant_and_the_rest_byte_for_byte(
    app: FastAPI, case: str
) -> None:
    body = {"model": "SmolLM2", "messages": MESSAGES, "temperature": 0.10, **APPLIED[case]}
    status, headers, _ = ask(app, CHAT, body)
    assert status == 200
    assert headers["x-palign-persona"].startswith("alice@")
    got = fields(app)
    assert "token" in json.loads(got["vllm_xargs"].pop("palign"))
    assert "persona" not in got
    assert got["model"] == "SmolLM2"
    same = {
        name: value
        for name, value in body.items()
        if name not in ("persona", "vllm_xargs", "model")
    }
    assert {name: got[name] for name in same} == same
    assert got["vllm_xargs"] == (body.get("vllm_xargs") or {})


SCOPES: dict[str, tuple[dict[str, Any], str]] = {
    "the server's": ({"persona": "alice"}, "answers"),
    "field": ({"persona": {"id": "alice", "scope": "all"}}, "all"),
    "blend": ({"persona": {"mix": {"alice": 1}, "scope": "all"}}, "all"),
    "metadata": ({"metadata": {"persona": "alice", "persona_scope": "all"}}, "all"),
    "null": ({"metadata": {"persona": "alice", "persona_scope": None}}, "answers"),
    "the server's, said in one place": (
        {"persona": {"id": "alice", "scope": "answers"}, "metadata": {"persona": "alice"}}, "answers",
    ),
    "said in both": (
        {"persona": {"id": "alice", "scope": "all"}, "metadata": {"persona": "alice", "persona_scope": "all"}}, "all",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SCOPES)
def test_the_scope_is_taken_from_every_place_and_told(app: FastAPI, case: str) -> None:
    more, scope = SCOPES[case]
    status, headers, _ = ask(app, CHAT, {"model": "SmolLM2", "messages": MESSAGES, **more})
    assert status == 200
    assert headers["x-palign-persona"].endswith(f";strength=1.0;scope={scope}")


@pytest.mark.parametrize(
    "more",
    [
        {"model": "SmolLM2@alice", "persona": {"id": "alice", "scope": "all"}},
        {
            "persona": {"id": "alice", "scope": "answers"},
            "metadata": {"persona": "alice", "persona_scope": "all"},
        },
    ],
)
def test_two_places_that_disagree_about_the_scope_are_a_conflict(
    app: FastAPI, more: dict[str, Any]
) -> None:
    status, _, reply = ask(app, CHAT, {"model": "SmolLM2", "messages": MESSAGES, **more})
    assert (status, reply["error"]["code"]) == (400, "persona_conflict")
    assert "scope all" in reply["error"]["message"]


def test_more_than_the_file_allows_is_an_error_that_says_who_bounds_it(
    app: FastAPI, front_end: FrontEnd
) -> None:
    mild = dataclasses.replace(
        random_persona(5, **SHAPE, steered=5), fit={"max_strength": 1.5}, digest=""
    )
    front_end.resolver.registry.put(Tenant(), "mild", mild, mild.to_bytes(), replace=True)
    for wish, got in (
        ({"id": "mild", "strength": 1.5}, ""),
        ({"id": "mild", "strength": -2}, "2"),
        ({"mix": {"mild": 0.8, "bob": 0.2}, "strength": 2}, "1.6"),
    ):
        status, _, reply = ask(
            app, CHAT, {"model": "SmolLM2", "messages": MESSAGES, "persona": wish}
        )
        if not got:
            assert status == 200
            continue
        error = reply["error"]
        assert (status, error["code"], error["param"]) == (
            400,
            "persona_invalid",
            "persona.strength",
        )
        for part in (f"amounts to {got} for persona 'mild'", "at most 1.5", "fit.max_strength"):
            assert part in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"persona": "nobody"}, "persona"),
        ({"metadata": {"persona": "nobody"}}, "metadata.persona"),
        ({"model": "SmolLM2@nobody"}, "model"),
        ({"persona": {"id": "alice", "strength": 99}}, "persona.strength"),
        ({"metadata": {"persona": "alice", "persona_strength": "99"}}, "metadata.persona_strength"),
    ],
)
def test_what_cannot_be_granted_is_refused_with_the_place_that_asked(
    app: FastAPI, fields: dict[str, Any], param: str
) -> None:
    _, _, reply = ask(app, CHAT, {"model": "SmolLM2", "messages": MESSAGES, **fields})
    assert reply["error"]["param"] == param


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "strength beside": (CHAT, {"persona": "alice", "strength": 2}, "strength"),
    "mix beside": (CHAT, {"persona": "alice", "mix": {"alice": 1}}, "mix"),
    "scope beside": (CHAT, {"persona": "alice", "scope": "all"}, "scope"),
    "strength beside a suffix": (CHAT, {"model": "SmolLM2@alice", "Strength": 2}, "Strength"),
    "strength in metadata": (CHAT, {"metadata": {"persona": "alice", "strength": "2"}}, "metadata.strength"),
    "strength in metadata beside a field": (CHAT, {"persona": "alice", "metadata": {"strength": "2"}}, "metadata.strength"),
    "a scope that is none, in metadata": (CHAT, {"metadata": {"persona": "alice", "persona_scope": "prompt"}}, "metadata.persona_scope"),
    "a scope without a persona": (CHAT, {"metadata": {"persona_scope": "all"}}, "metadata.persona_scope"),
    "a scope that is none": (CHAT, {"persona": {"id": "alice", "scope": "ALL"}}, "persona.scope"),
    "a scope of another type": (CHAT, {"persona": {"id": "alice", "scope": ["all"]}}, "persona.scope"),
    "a scope for each part": (CHAT, {"persona": {"mix": {"alice": {"weight": 1, "scope": "all"}}}}, "persona.mix.alice"),
    "an unknown key inside": (CHAT, {"persona": {"id": "alice", "tokens": "all"}}, "persona"),
    "xargs": (CHAT, {"vllm_xargs": {"persona": "alice"}}, "vllm_xargs.persona"),
    "reserved in xargs": (CHAT, {"vllm_xargs": {"palign": "alice"}}, "vllm_xargs"),
    "reserved by another case": (CHAT, {"vllm_xargs": {"PALIGN": "alice"}}, "vllm_xargs"),
    "sampling_params": (CHAT, {"sampling_params": {"extra_args": {"palign": "alice"}}}, "sampling_params"),
    "extra_body": (CHAT, {"extra_body": {"persona": "alice"}}, "extra_body.persona"),
    "extraBody": (CHAT, {"extraBody": {"persona": "alice"}}, "extraBody.persona"),
    "metadata in extra_body": (CHAT, {"extra_body": {"metadata": {"persona": "alice"}}}, "extra_body.metadata.persona"),
    "model in extra_body": (CHAT, {"extra_body": {"model": "SmolLM2@alice"}}, "extra_body.model"),
    "extra_query": (CHAT, {"extra_query": {"persona": "alice"}}, "extra_query.persona"),
    "metadata as text": (CHAT, {"metadata": '{"persona": "alice"}'}, "metadata (text).persona"),
    "a list of metadata": (CHAT, {"metadata": [{"persona": "alice"}]}, "metadata[].persona"),
    "extra_body as text": (CHAT, {"extra_body": ' {"metadata": {"persona": "alice"}}'}, "extra_body (text).metadata.persona"),
    "a list of texts": (CHAT, {"extra_body": [1, '{"model": "SmolLM2@alice"}']}, "extra_body[].model"),
    "a list in a text": (CHAT, {"metadata": '[{"persona": "alice"}]'}, "metadata (text)[].persona"),
    "a list in a query": (f"{CHAT}?metadata=[{{%22persona%22:%22alice%22}}]", {}, "query.metadata[].persona"),
    "a key twice in a text": (CHAT, {"metadata": '{"persona": null, "persona": "alice"}'}, "metadata (text).persona"),
    "palign_scope": (CHAT, {"persona": "alice", "palign_scope": "all"}, "palign_scope"),
    "a weight in metadata": (CHAT, {"metadata": {"persona": "alice", "persona_weight": "2"}}, "metadata.persona_weight"),
    "PERSONA": (CHAT, {"PERSONA": "alice"}, "PERSONA"),
    "personaId": (CHAT, {"personaId": "alice"}, "personaId"),
    "persona-id": (CHAT, {"persona-id": "alice"}, "persona-id"),
    "Model": (CHAT, {"Model": "SmolLM2@alice"}, "Model"),
    "Persona in metadata": (CHAT, {"metadata": {"Persona": "alice"}}, "metadata.Persona"),
    "Metadata": (CHAT, {"Metadata": {"persona": "alice"}}, "Metadata.persona"),
    "query": (f"{CHAT}?persona=alice", {}, "query.persona"),
    "query of a nested name": (f"{CHAT}?metadata[persona]=alice", {}, "query.metadata.persona"),
    "model in a query": (f"{CHAT}?model=SmolLM2%40alice", {}, "query.model"),
    "strength in a query": (f"{CHAT}?strength=2", {"persona": "alice"}, "query.strength"),
    "messages": ("/v1/messages", {"persona": "alice"}, "persona"),
    "model for messages": ("/v1/messages", {"model": "SmolLM2@alice"}, "model"),
    "field for tokenize": ("/tokenize", {"persona": "alice"}, "persona"),
    "beam search": (CHAT, {"persona": "alice", "use_beam_search": True}, "use_beam_search"),
    "no object as xargs": (CHAT, {"persona": "alice", "vllm_xargs": [1]}, "vllm_xargs"),
    "alpha beside": (CHAT, {"persona": "alice", "alpha": 2}, "alpha"),
    "weight beside": (CHAT, {"persona": "alice", "weight": 2}, "weight"),
    "persona_alpha beside": (CHAT, {"persona": "alice", "persona_alpha": 2}, "persona_alpha"),
    "persona.id": (CHAT, {"persona.id": "alice"}, "persona.id"),
    "persona[id]": (CHAT, {"persona[id]": "alice"}, "persona[id]"),
    "a blank after it": (CHAT, {"persona ": "alice"}, "persona "),
    "metadata.persona in one": (CHAT, {"metadata.persona": "alice"}, "metadata.persona"),
    "persona.id in metadata": (CHAT, {"metadata": {"persona.id": "alice"}}, "metadata.persona.id"),
    "palign_persona_id": (CHAT, {"palign_persona_id": "alice"}, "palign_persona_id"),
    "persona_names": (CHAT, {"persona_names": ["alice"]}, "persona_names"),
    "personaDigest": (CHAT, {"personaDigest": "0123456789ab"}, "personaDigest"),
    "extra_json": (CHAT, {"extra_json": {"persona": "alice"}}, "extra_json.persona"),
    "a list in a list": (CHAT, {"extra_body": [[{"persona": "alice"}]]}, "extra_body[].persona"),
    "behind five thousand others": (CHAT, {"extra_body": [*range(5000), {"persona": "alice"}]}, "extra_body"),
    "five deep": (CHAT, {"extra_body": {"extra_body": {"extra_body": {"extra_body": {"extra_body": {"persona": "alice"}}}}}},
                  "extra_body.extra_body.extra_body.extra_body.extra_body"),
    "behind a thousand of a query": (f"{CHAT}?persona=alice" + "&a=1" * 1000, {}, "query"),
    "per_sona": (CHAT, {"per_sona": "alice"}, "per_sona"),
    "sampling_params.persona in one": (CHAT, {"sampling_params.persona": "alice"}, "sampling_params.persona"),
    "extra_json[persona] in one": (CHAT, {"extra_json[persona]": "alice"}, "extra_json[persona]"),
    "a text in a text": (CHAT, {"metadata": json.dumps(json.dumps({"persona": "alice"}))}, "metadata (text).persona"),
    "a list of texts in a list of texts": (
        CHAT, {"metadata": json.dumps([json.dumps([json.dumps({"persona": "alice"})])])}, "metadata (text)[].persona",
    ),
    "behind what is no JSON": (CHAT, {"metadata": ['{"a', '{"persona": "alice"}']}, "metadata[].persona"),
    "lists of lists without end": (CHAT, {"extra_body": json.loads('[{"extra_body":' * 200 + '"persona"' + "}]" * 200)},
                                   "extra_body[].extra_body[].extra_body[].extra_body[].extra_body"),
    "lists that nobody can read": (CHAT, {"metadata": "[" * 5000 + '{"persona": "alice"}' + "]" * 5000}, "metadata (text)"),
    "a list of a megabyte": (CHAT, {"metadata": [[]] * 300_000 + [{"persona": "alice"}]}, "metadata"),
    "a text of a megabyte": (CHAT, {"extra_body": json.dumps({"user": "x" * (1 << 20), "persona": "alice"})}, "extra_body (text)"),
    "a list whose names are there twice": (CHAT, {"metadata": '[{"persona": "alice", "persona": null}]'}, "metadata (text)[].persona"),
    "what Python prints": (CHAT, {"extra_body": "{'persona': 'alice'}"}, "extra_body (text).persona"),
    "a quotation mark in it": (CHAT, {'per"sona': "alice"}, 'per"sona'),
    "a backslash in it": (CHAT, {"per\\sona": "alice"}, "per\\sona"),
    "a mark before it": (CHAT, {"@persona": "alice"}, "@persona"),
    "a mark before its place": (CHAT, {"metadata": {"@metadata": {"persona": "alice"}}}, "metadata.@metadata.persona"),
    "a byte order mark": (CHAT, {"metadata": '\ufeff{"persona": "alice"}'}, "metadata (text).persona"),
    "escapes in what is no JSON": (CHAT, {"extra_body": '{"\\u0070ersona": None}'}, "extra_body (text).persona"),
    "a model in what is no JSON": (CHAT, {"extra_body": '{"model": "SmolLM2@alice",}'}, "extra_body (text).model"),
    "a model that Python prints": (CHAT, {"extra_body": "{'model': 'SmolLM2@alice'}"}, "extra_body (text).model"),
    "names without quotes": (CHAT, {"extra_body": "{persona: alice}"}, "extra_body (text).persona"),
    "a list's place in a query": (f"{CHAT}?metadata[0][persona]=alice", {}, "query.metadata.persona"),
    "marks in a query": (f"{CHAT}?per.sona=alice", {}, "query.per.sona"),
    "a query without end": (f"{CHAT}?session" + ".session" * 7000 + "=persona", {}, "query.session.session.session.session.session"),
    "a slash in it": (CHAT, {"per/sona": "alice"}, "per/sona"),
    "weight in a query": (f"{CHAT}?weight=2", {"persona": "alice"}, "query.weight"),
    "a persona of a megabyte": (CHAT, {"persona": ["x" * (1 << 20)]}, "persona"),
    "a persona too deep": (CHAT, {"persona": json.loads("[" * 900 + "]" * 900)}, "persona"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_not_be_applied_is_refused_with_its_place(app: FastAPI, case: str) -> None:
    path, more, param = REFUSED[case]
    body = {"model": "SmolLM2", "messages": MESSAGES, **more}
    status, headers, reply = ask(app, path, body)
    assert (status, reply["error"]["code"]) == (400, "persona_invalid"), reply
    assert reply["error"]["param"] == param
    assert "x-palign-persona" not in headers
    assert not app.state.received


BROKEN_TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a model that is no JSON": (CHAT, {"extra_body": '{"model": None, "user": "me@x.org"}'}),
    "a model without quotes": (CHAT, {"metadata": '{"model": m@alice}'}),
    "an adapter that is no JSON": (CHAT, {"extra_body": '{"lora_name": None, "a": "@"}'}),
    "in a query": (f"{CHAT}?session={{%22model%22:None}}", {}),
}


@pytest.mark.parametrize("case", BROKEN_TEXTS)
def test_a_text_that_is_no_json_hides_no_persona(app: FastAPI, case: str) -> None:
    path, more = BROKEN_TEXTS[case]
    body = {"model": "SmolLM2", "messages": MESSAGES, "persona": "alice", **more}
    status, headers, _ = ask(app, path, body)
    assert status == 200
    assert headers["x-palign-persona"].startswith("alice@")


def test_an_adapter_whose_resolver_fails_is_an_error_that_keeps_what_it_said_to_the_log(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(name: str) -> None:
        raise ValueError("/secret/folder")

    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    monkeypatch.setattr(app.state.openai_serving_models, "resolve_lora", broken)
    for more in ({}, {"persona": "alice"}):
        body = {"model": "pirate@alice", "messages": MESSAGES, **more}
        status, _, reply = ask(app, CHAT, body)
        assert (status, reply["error"]["param"]) == (400, "model")
        assert "'pirate' cannot be loaded now" in reply["error"]["message"]
        assert "secret" not in reply["error"]["message"]
    assert not app.state.received


PASSES: dict[str, dict[str, Any]] = {
    "nulls": {"persona": None, "Persona": None, "metadata": None, "extra_body": {"persona": None}, "vllm_xargs": None},
    "a schema": {"response_format": {"json_schema": {"properties": {"persona": {"type": "string"}}}}},
    "a tool": {"tools": [{"function": {"parameters": {"properties": {"persona": {}, "strength": {}}}}}]},
    "a template's variable": {"chat_template_kwargs": {"persona": "pirate"}},
    "a prompt's variables": {"prompt": {"id": "x", "variables": {"persona": "pirate"}}},
    "a client's own metadata": {"metadata": {"personality": "warm", "user_strength": "2", "scope": "a@b", "mix": "x", "personal": "1"}},
    "loose words without a persona": {"strength": 2, "mix": {"a": 1}, "scope": "@"},
    "metadata that is no object": {"metadata": [None, 3, "a personal matter", ["x"], {"personality": "warm"}]},
    "a long list": {"metadata": ["x" * 70_000]},
    "lists nobody can read": {"metadata": "[" * 5000},
    "texts that are no JSON": {"metadata": {"session": "[Personal] budget"}, "extra_body": '"Impersonation" a talk'},
    "a path in brackets": {"metadata": {"session": "[C:\\Users\\me]"}, "extra_body": "{session_id}: personal"},
    "blanks in a name": {"per sona": "alice"},
    "words in a message": {"messages": [{"role": "user", "content": '"persona": "alice" \\u0070 SmolLM2@alice'}]},
    "a served name with @": {"model": "odd@alice"},
    "a model that is not here": {"model": "other@alice"},
    "NaN and big numbers": {"seed": float("nan"), "user": "a@b", "x": 10**400},
}  # fmt: skip


@pytest.mark.parametrize("case", PASSES)
def test_everything_else_reaches_vllm_byte_for_byte(app: FastAPI, case: str) -> None:
    body = json.dumps({"model": "SmolLM2", "messages": MESSAGES, **PASSES[case]}).encode()
    status, headers, _ = ask(app, CHAT, body)
    assert status == 200
    assert "x-palign-persona" not in headers
    assert app.state.received == [body]


BESIDE: dict[str, dict[str, Any]] = {
    "a logits processor's alpha": {"vllm_xargs": {"alpha": 0.3}},
    "a client's own weight": {"metadata": {"weight": "72"}},
    "another script": {"重量weight": 1},
    "an address five deep": {"extra_body": {"extra_body": {"extra_body": {"extra_body": {"metadata": {"mail": "a@b.c"}}}}}},
}  # fmt: skip


@pytest.mark.parametrize("case", BESIDE)
def test_words_of_others_may_stand_beside_a_persona(app: FastAPI, case: str) -> None:
    body = {"model": "SmolLM2", "messages": MESSAGES, "persona": "alice", **BESIDE[case]}
    status, headers, reply = ask(app, CHAT, body)
    assert status == 200, reply
    assert headers["x-palign-persona"].startswith("alice@")


@pytest.mark.parametrize("path", ["/tokenize", "/v1/messages/count_tokens"])
def test_a_path_that_only_looks_at_the_model_takes_its_name_without_the_suffix(
    app: FastAPI, path: str
) -> None:
    status, headers, _ = ask(app, path, {"prompt": "x", "model": "SmolLM2@nobody", "add": 1.50})
    assert status == 200
    assert "x-palign-persona" not in headers
    assert app.state.received == [b'{"prompt": "x", "model": "SmolLM2", "add": 1.5}']


@pytest.mark.parametrize("name", ["gpt-4o@alice", "openai/SmolLM2@alice", "smollm2@alice"])
def test_a_server_that_answers_to_every_name_applies_every_suffix(
    app: FastAPI, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "any_model", lambda: True)
    status, headers, _ = ask(app, CHAT, {"model": name, "messages": MESSAGES})
    assert status == 200
    assert headers["x-palign-persona"].startswith("alice@")
    assert fields(app)["model"] == name.removesuffix("@alice")
    assert ask(app, "/v1/messages", {"model": name, "messages": MESSAGES})[0] == 400
    assert ask(app, CHAT, {"model": "gpt-4o@nobody", "messages": MESSAGES})[0] == 404


def test_an_adapter_that_a_resolver_loads_on_first_use_takes_a_suffix(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_loads_on_use", lambda models: True)
    _, headers, _ = ask(app, CHAT, {"model": "pirate@alice", "messages": MESSAGES})
    assert headers["x-palign-persona"].startswith("alice@")
    assert fields(app)["model"] == "pirate"
    ask(app, CHAT, {"model": "nothing@alice", "messages": MESSAGES})
    assert fields(app)["model"] == "nothing@alice"
    assert app.state.openai_serving_models.asked == ["pirate", "nothing"]


def test_a_model_named_like_a_persona_is_warned_of_once(
    app: FastAPI, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_warned", set())
    monkeypatch.setattr("logging.Logger.propagate", True, raising=False)
    caplog.set_level("WARNING", "vllm.palign")
    app.state.openai_serving_models.lora_requests["SmolLM2@alice"] = object()
    for _ in range(2):
        assert ask(app, CHAT, {"model": "SmolLM2@alice", "messages": MESSAGES})[0] == 200
        assert fields(app)["model"] == "SmolLM2@alice"
    warned = [record for record in caplog.records if "SmolLM2@alice" in record.getMessage()]
    assert len(warned) == 1
    ask(app, "/v1/audio", {"lora_name": "SmolLM2@bob", "lora_path": "x"})
    assert any("SmolLM2@bob" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-www-form-urlencoded", b"model=SmolLM2&Persona=alice"),
        ("application/x-www-form-urlencoded", b"model=SmolLM2%40alice"),
        ("multipart/form-data; boundary=XX", b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\xff\0"persona"\r\n--XX\r\nContent-Disposition: form-data; name="persona"\r\n\r\nalice\r\n--XX--\r\n'),
        ("multipart/form-data; boundary=XX", b'--XX\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{"persona": "alice"}\r\n--XX--\r\n'),
        ("multipart/form-data; boundary=XX", b'--XX\r\nContent-Disposition: form-data; name="metadata[persona]"\r\n\r\nalice\r\n--XX--\r\n'),
    ],
)  # fmt: skip
def test_form_fields_are_under_the_same_rule(app: FastAPI, content_type: str, body: bytes) -> None:
    status, _, reply = ask(app, "/v1/audio", body, headers={"content-type": content_type})
    assert (status, reply["error"]["code"]) == (400, "persona_invalid")
    plain = body.lower().replace(b"ersona", b"erson").replace(b"alice", b"x").replace(b"%40", b"-")
    assert ask(app, "/v1/audio", plain, headers={"content-type": content_type})[0] == 200
    assert app.state.received == [plain]


def part(disposition: bytes, value: bytes = b"alice") -> bytes:
    return b"--X\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + value + b"\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        part(b"NAME=persona"),
        part(b'a="x; name=y"; name="persona"'),
        part(b'name="\\persona"'),
        part(b"name*=utf-8''persona"),
        part(b"\r\n name=persona"),
        part(b"name=a") * 999 + part(b"name=b") + part(b"name=persona"),
        part(b"x=" + b"y" * (1 << 16) + b"; name=persona"),
        part(b"name=metadata", b'{"a": "' + b"x" * (1 << 16) + b'", "persona": "alice"}'),
        part(b"name=extra_body[metadata]", b'{"a": "' + b"x" * (1 << 16) + b'", "persona": "alice"}'),
    ],
    ids=["case", "quoted", "escaped", "RFC 2231", "folded", "after a thousand", "far away", "cut off", "cut off within"],
)  # fmt: skip
def test_a_form_hides_no_persona(app: FastAPI, parts: bytes) -> None:
    body = parts + b"--X--\r\n"
    options = {"headers": {"content-type": "multipart/form-data; a=b; boundary=X"}}
    status, _, reply = ask(app, "/v1/audio", body, **options)
    assert (status, reply["error"]["code"]) == (400, "persona_invalid")
    assert not app.state.received


@pytest.mark.parametrize(
    "filling", [b'a";"', b";", b'"', b"=", b"\\", b'="', b"name*", b" ", b"\r\n ", b';a="\\']
)
def test_a_form_is_read_in_linear_time(filling: bytes) -> None:
    """Twenty times as much takes twenty times as long, not hundreds of seconds."""
    begun = time.process_time()
    for times in (1, 20):
        head = filling * (times * 3000 // len(filling))
        body = part(b"name=" + head, b"@") + b"--X--\r\n"
        with suppress(PersonaInvalid):
            forms.fields(body, b"multipart/form-data; " + head + b"; boundary=X")
            forms.fields(body, b"multipart/form-data; boundary=X")
    assert time.process_time() - begun < 2


def test_a_file_that_holds_our_words_is_no_field(app: FastAPI) -> None:
    body = b'--X\r\nContent-Disposition: form-data; name="file"; filename="persona"\r\n\r\nname="persona"\r\n--X--\r\n'
    options = {"headers": {"content-type": "multipart/form-data; boundary=X"}}
    assert ask(app, "/v1/audio", body, **options)[0] == 200


def test_request_headers_that_ask_are_refused(app: FastAPI) -> None:
    for headers in (
        {"X-Palign-Persona": "alice"},
        {"Persona": "alice"},
        {"X-Persona-Id": "alice"},
        {"X-Palign-Scope": "all"},
        {"X-Palign-Persona-Id": "alice"},
        {"X-Amzn-SageMaker-Adapter-Identifier": "SmolLM2@alice"},
    ):
        assert ask(app, CHAT, {"messages": MESSAGES}, headers=headers)[0] == 400
    for headers in (
        {"X-Amzn-SageMaker-Adapter-Identifier": "pirate"},
        {"X-Personal": "1", "X-Impersonate-User": "alice"},
    ):
        assert ask(app, CHAT, {"messages": MESSAGES}, headers=headers)[0] == 200


def test_a_slash_at_the_end_redirects_as_in_stock_vllm(app: FastAPI) -> None:
    for body in ({"persona": "alice"}, {"model": "SmolLM2@alice"}, {}):
        status, headers, _ = ask(app, f"{CHAT}/", {"messages": MESSAGES, **body})
        assert status == 307
        assert headers["location"].endswith(CHAT)
    assert not app.state.received


def test_a_browser_may_read_the_header(app: FastAPI) -> None:
    body = {"messages": MESSAGES, "persona": "alice"}
    _, headers, _ = ask(app, CHAT, body, headers={"origin": "https://page"})
    assert headers["access-control-expose-headers"] == "x-palign-persona"
    assert "access-control-expose-headers" not in ask(app, CHAT, body)[1]


def test_a_body_that_is_too_large_is_an_error_object_announced_or_not(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "MAX_BODY", 1 << 20)
    for headers in ({}, {"content-length": "x"}):
        status, _, reply = ask(app, CHAT, b" " * ((1 << 20) + 1), headers=headers)
        assert (status, reply["error"]["code"]) == (413, "body_too_large")
    assert ask(app, CHAT, b" " * (1 << 20))[0] == 200
    assert len(app.state.received) == 1


def large(kind: str) -> bytes:
    """Some four MiB of JSON, with a persona at the end."""
    filling = {
        "objects": b'{"a":"@"},' * 400_000 + b"{}",
        "numbers": b"123," * 1_000_000 + b"1",
        "strings": b'"\\u0041\\"",' * 400_000 + b"1",
        "text": b'"' + b"x" * (4 << 20) + b'"',
    }[kind]
    return b'{"model":"SmolLM2","prompt":[' + filling + b'],"persona":"alice"}'


@pytest.mark.parametrize("kind", ["objects", "numbers", "strings", "text"])
def test_large_bodies_are_read_beside_the_loop(
    app: FastAPI, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_palign.server import body as bodies

    readers = []
    mentions = bodies.mentions

    def noted(body: bytes) -> Any:
        readers.append(threading.current_thread().name)
        return mentions(body)

    monkeypatch.setattr(bodies, "mentions", noted)
    gaps = [0.0]
    # What the first request of a process imports is not what is looked at.
    assert ask(app, CHAT, {"messages": MESSAGES, "persona": "alice"})[0] == 200
    app.state.received.clear()
    readers.clear()

    async def main() -> int:
        async def tick() -> None:
            while True:
                # Computing time: a machine that stands still says nothing about the loop.
                before = time.process_time()
                await asyncio.sleep(0.001)
                gaps.append(time.process_time() - before)

        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0.01)
        status, _, _ = await post(app, "/v1/completions", large(kind), chunk=4 << 20)
        ticking.cancel()
        return status

    assert asyncio.run(main()) == 200
    assert [name.startswith("palign-body") for name in readers] == [True]
    # Parsing it all on the loop took a second and more.
    assert max(gaps) < 0.5
    assert app.state.received[0].endswith(b'"}}')
    assert b'"token' in app.state.received[0][-200:]
