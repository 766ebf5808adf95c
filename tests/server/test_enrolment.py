"""A PUT of answers becomes a persona, and the questionnaire says what to ask: the routes, without a model."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from tests.directions import tiny_directions
from tests.server.calls import SHAPE, open_front_end
from vllm_palign.container import STRICT_JSON
from vllm_palign.persona import Persona
from vllm_palign.server import personas, questionnaire
from vllm_palign.server.enrolment import MAX_DESCRIPTION, most_bytes
from vllm_palign.server.gate import Gate
from vllm_palign.server.middleware import PersonaMiddleware
from vllm_palign.tenants.tenant import Tenant

DIRECTIONS = tiny_directions(**SHAPE)
ITEMS = [item["id"] for item in DIRECTIONS.questionnaire()["data"]]
ANSWERS = {item: 1 + (3 * place) % 5 for place, item in enumerate(ITEMS)}


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    app.state.palign = open_front_end()
    app.state.palign.directions = DIRECTIONS
    app.include_router(personas.router)
    app.include_router(questionnaire.router)
    app.add_middleware(PersonaMiddleware)
    app.add_middleware(Gate)
    return app


def call(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as web:
            return await web.request(method, path, **options)

    return asyncio.run(once())


def put(app: FastAPI, name: str, body: Any, **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json", **options.pop("headers", {})}
    return call(app, "PUT", f"/v1/personas/{name}", content=content, headers=headers, **options)


def refused(reply: httpx.Response, status: int = 400, code: str = "persona_invalid") -> str:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return str(error["message"])


def test_answers_become_a_persona_with_the_name_it_is_put_under(app: FastAPI) -> None:
    reply = put(app, "alice", {"answers": ANSWERS, "description": "Alice, in May"})
    assert reply.status_code == 201, reply.text
    made = DIRECTIONS.from_answers("alice", ANSWERS, "Alice, in May")
    said = reply.json()
    assert (said["digest"], said["name"], said["alpha"]) == (made.digest, "alice", made.alpha)
    assert said["description"] == "Alice, in May"
    assert said["fit"] == made.fit
    assert {"expected_alignment", "weak", "warnings", "answered"} <= set(said["fit"])
    kept = app.state.palign.resolver.registry.read(Tenant(), "alice")[1]
    assert Persona.from_bytes(kept).digest == made.digest
    assert call(app, "GET", "/v1/personas/alice").json() == said


def test_the_file_is_for_whoever_may_replace_it(app: FastAPI) -> None:
    made = put(app, "alice", {"answers": ANSWERS}).json()
    as_file = {"accept": "application/octet-stream"}
    reply = call(app, "GET", "/v1/personas/alice", headers=as_file)
    assert reply.headers["content-type"] == "application/octet-stream"
    assert Persona.from_bytes(reply.content).digest == made["digest"]
    for accept in ("*/*", "application/json", "application/json, */*"):
        assert call(app, "GET", "/v1/personas/alice", headers={"accept": accept}).json() == made
    refused(call(app, "GET", "/v1/personas/bob", headers=as_file), 404, "persona_not_found")


def test_the_same_answers_again_change_nothing_and_others_need_leave(app: FastAPI) -> None:
    first = put(app, "alice", {"answers": ANSWERS})
    again = put(app, "alice", {"description": None, "traits": None, "answers": ANSWERS})
    assert (again.status_code, again.json()) == (200, first.json())
    others = {"answers": {**ANSWERS, ITEMS[0]: 6 - ANSWERS[ITEMS[0]] or 1, ITEMS[1]: None}}
    assert "replace=true" in refused(put(app, "alice", others), 409, "persona_exists")
    replaced = put(app, "alice", others, params={"replace": "true"})
    assert replaced.status_code == 200
    assert replaced.json()["digest"] != first.json()["digest"]


def test_what_the_server_made_may_be_put_as_a_file(app: FastAPI) -> None:
    assert put(app, "alice", {"answers": ANSWERS}).status_code == 201
    file = DIRECTIONS.from_answers("alice", ANSWERS).to_bytes()
    reply = put(app, "alice", file, headers={"content-type": "application/octet-stream"})
    assert reply.status_code == 200


def test_trait_values_become_a_persona_by_name_or_letter(app: FastAPI) -> None:
    named = put(app, "bob", {"traits": {"extraversion": 1.5, "neuroticism": -1}})
    assert named.status_code == 201, named.text
    lettered = put(app, "bob", {"traits": {"E": 1.5, "N": -1}})
    assert (lettered.status_code, lettered.json()["digest"]) == (200, named.json()["digest"])
    assert named.json()["fit"]["sliders"]


def test_a_description_is_ordinary_text_of_any_language(app: FastAPI) -> None:
    text = "Alice\N{NO-BREAK SPACE}: soft\N{SOFT HYPHEN}ly \N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}"
    reply = put(app, "alice", {"answers": ANSWERS, "description": text})
    assert (reply.status_code, reply.json()["description"]) == (201, text)


def test_json_that_is_sent_as_a_file_is_told_how_it_is_sent(app: FastAPI) -> None:
    reply = put(app, "alice", {"answers": ANSWERS}, headers={"content-type": "text/plain"})
    assert "Content-Type: application/json" in refused(reply)


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", " application/json ;x=y"]
)
def test_json_is_json_with_parameters_and_in_capitals(app: FastAPI, kind: str) -> None:
    reply = put(app, "alice", {"answers": ANSWERS}, headers={"content-type": kind})
    assert reply.status_code == 201


@pytest.mark.parametrize("kind", ["application/ld+json", "text/json", "application/jsonl", ""])
def test_any_other_type_is_a_file(app: FastAPI, kind: str) -> None:
    reply = put(app, "alice", {"answers": ANSWERS}, headers={"content-type": kind})
    assert "safetensors" in refused(reply)


WRONG: dict[str, tuple[Any, list[str]]] = {
    "nothing": (b"", ["not JSON"]),
    "a list": ([], ["the body is a list"]),
    "an empty object": ({}, ["nothing is given"]),
    "nulls": ({"answers": None, "traits": None}, ["nothing is given"]),
    "both": ({"answers": ANSWERS, "traits": {"E": 1}}, ["both answers and traits are given"]),
    "NaN": (b'{"traits": {"E": NaN}}', ["NaN is not JSON"]),
    "a key twice": (b'{"traits": {"E": 1, "E": 2}}', ["'E' is there twice"]),
    "two objects": (b"{}{}", ["not JSON"]),
    "not UTF-8": (b'{"description": "\xff"}', ["not UTF-8"]),
    "deep": (b'{"answers": ' + b"[" * 10_000, ["nested too deeply"]),
    "a number of 5,000 digits": (b'{"traits": {"E": ' + b"1" * 5000 + b"}}", ["not JSON"]),
    "everything around the answers": (
        {"answers": [1], "traits": 7, "alpha": 3, "name": "x", "description": "a\nb"},
        ["'alpha'", "'name'", "both", "answers is a list", "traits is a number", "description holds '\\n'"],
    ),
    "a long description": (
        {"answers": ANSWERS, "description": "x" * (MAX_DESCRIPTION + 1)},
        ["1001 characters, wanted at most 1000"],
    ),
    "a description with half a character": (
        b'{"traits": {"E": 1}, "description": "\\ud800"}', [r"holds '\ud800', wanted text"],
    ),
    "no answers": ({"answers": {}}, []),
    "answers that are all missing": ({"answers": dict.fromkeys(ITEMS)}, []),
    "everything the same": ({"answers": dict.fromkeys(ITEMS, 3)}, []),
    "unknown items and values off the scale": (
        {"answers": {**ANSWERS, "nobody": 3, "\ud800": 2, ITEMS[0]: 9, ITEMS[1]: "x"}},
        ["nobody", ITEMS[0], ITEMS[1]],
    ),
    "an infinite value": (b'{"traits": {"E": 1e999}}', []),
    "a trait that is none": ({"traits": {"E": 1, "X": 1}}, ["X"]),
    "traits of 0": ({"traits": {"E": 0}}, []),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_says_nothing_or_cannot_be_read_is_a_400_that_says_why(
    app: FastAPI, kind: str
) -> None:
    body, words = WRONG[kind]
    message = refused(put(app, "alice", body))
    for word in words:
        assert word in message
    assert len(message) < 4000
    assert call(app, "GET", "/v1/personas/alice").status_code == 404


def test_a_body_too_large_for_any_questionnaire_is_refused_unread(app: FastAPI) -> None:
    most = most_bytes(DIRECTIONS)
    assert f"larger than {most} bytes" in refused(put(app, "alice", b" " * (most + 1)), 413)
    refused(put(app, "alice", b" " * most))


def test_answers_to_every_item_fit_however_they_are_written(app: FastAPI) -> None:
    description = "\N{GRINNING FACE}" * MAX_DESCRIPTION
    body = {"answers": ANSWERS, "description": description}
    assert put(app, "alice", json.dumps(body, indent=8).encode()).status_code == 201


def test_junk_of_many_unknown_items_is_refused_in_few_words(app: FastAPI) -> None:
    body = {"answers": {f"no{number}": 3 for number in range(1500)}}
    assert len(refused(put(app, "alice", body))) < 4000


def test_a_key_twice_among_very_many_is_found_at_once() -> None:
    keys = "".join(f'"a{number}":1,' for number in range(200_000))
    began = time.process_time()
    with pytest.raises(ValueError, match="'z' is there twice"):
        STRICT_JSON.decode("{" + keys + '"z":1,"z":2}')
    assert time.process_time() - began < 5


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))  # fmt: skip
@given(
    field=st.sampled_from(["answers", "traits"]),
    value=st.dictionaries(st.sampled_from([*ITEMS, "E", "openness"]) | st.text(), _JSON) | _JSON,
    description=st.none() | st.text() | _JSON,
)
def test_whatever_is_sent_is_a_persona_or_a_400(
    app: FastAPI, field: str, value: Any, description: Any
) -> None:
    body = json.dumps({field: value, "description": description}).encode()
    reply = put(app, "anybody", body, params={"replace": "true"})
    if reply.status_code not in (200, 201):
        refused(reply)


def test_without_directions_answers_are_a_501_that_says_what_to_do(app: FastAPI) -> None:
    app.state.palign.directions = None
    for reply in (
        put(app, "alice", {"answers": ANSWERS}),
        call(app, "GET", "/v1/questionnaire"),
    ):
        message = refused(reply, 501, "directions_missing")
        assert "--palign-directions" in message
        assert "palign-fit directions" in message


def test_the_questionnaire_is_what_directions_say_and_asked_for_once(app: FastAPI) -> None:
    reply = call(app, "GET", "/v1/questionnaire")
    assert reply.json() == DIRECTIONS.questionnaire()
    questionnaire.Questionnaire.model_validate(reply.json())
    tag = reply.headers["etag"]
    assert tag == f'"{DIRECTIONS.digest}"'
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = call(app, "GET", "/v1/questionnaire", headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert call(app, "GET", "/v1/questionnaire", headers={"if-none-match": '"x"'}).content
    refused(call(app, "POST", "/v1/questionnaire"), 405, "method_not_allowed")
    refused(call(app, "GET", "/v1/questionnaire/x"), 404, "not_found")


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    audit = logging.getLogger("palign.audit")
    monkeypatch.setattr(audit, "propagate", False)
    audit.addHandler(caplog.handler)
    audit.setLevel(logging.INFO)
    caplog.set_level(logging.DEBUG)
    yield caplog
    audit.removeHandler(caplog.handler)


def test_the_audit_log_has_what_became_of_it_and_no_answer(
    app: FastAPI, log: pytest.LogCaptureFixture
) -> None:
    secret = "a secret of Alice"
    digest = put(app, "alice", {"answers": ANSWERS, "description": secret}).json()["digest"]
    put(app, "alice", {"answers": {**ANSWERS, "whose-secret": 4, ITEMS[0]: 987_654_321}})
    put(app, "alice", {"traits": {"E": 1}})
    found = [json.loads(line) for line in log.messages if line.startswith("{")]
    fields = [
        {key: line.get(key) for key in ("action", "persona", "digest", "outcome", "made_of", "code")}
        for line in found
    ]  # fmt: skip
    put_ = {"action": "put", "persona": "alice"}
    assert fields == [
        {**put_, "digest": digest, "outcome": "created", "made_of": "answers", "code": None},
        {**put_, "digest": None, "outcome": None, "made_of": "answers", "code": "persona_invalid"},
        {**put_, "digest": None, "outcome": None, "made_of": "traits", "code": "persona_exists"},
    ]
    said = "\n".join(log.messages)
    for private in (secret, "whose-secret", "987654321", ITEMS[0]):
        assert private not in said.replace(digest, "")


def test_enrolments_are_counted_by_what_became_of_them(app: FastAPI) -> None:
    def counts() -> dict[str, float]:
        outcomes = ("created", "unchanged", "replaced", "refused", "failed")
        name = "palign_enrolments_total"
        return {
            outcome: REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0 for outcome in outcomes
        } | {"seconds": REGISTRY.get_sample_value("palign_enrolment_seconds_count") or 0}  # fmt: skip

    before = counts()
    put(app, "x", {"traits": {"E": 1}})
    put(app, "x", {"traits": {"E": 1}})
    put(app, "x", {"traits": {"E": 2}}, params={"replace": "true"})
    put(app, "x", {"traits": {"E": 1}})
    put(app, "x", b"junk")
    file = DIRECTIONS.from_traits("y", {"E": 1}).to_bytes()
    put(app, "y", file, headers={"content-type": "application/octet-stream"})
    grown = {key: count - before[key] for key, count in counts().items()}
    assert grown == {
        "created": 1, "unchanged": 1, "replaced": 1, "refused": 2, "failed": 0, "seconds": 5,
    }  # fmt: skip


def test_the_openapi_document_shows_both_bodies_with_examples(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    content = paths["/v1/personas/{persona_id}"]["put"]["requestBody"]["content"]
    assert set(content) == {"application/octet-stream", "application/json"}
    assert all(kind["examples"] for kind in content.values())
    assert set(content["application/json"]["examples"]) == {"answers", "traits"}
    replies = paths["/v1/questionnaire"]["get"]["responses"]
    assert {"200", "304", "501"} <= set(replies)
