"""Personas made of answers by a real server, for several tenants and two API server processes."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conftest import TINY
from tests.directions import tiny_directions
from tests.http.tenants.tenancy import Tenancy
from tests.http.tenants.test_metrics import scrape, value
from tests.oracle import logprobs
from vllm_palign.admission import forgetting

DIRECTIONS = tiny_directions(**TINY)
ITEMS = [item["id"] for item in DIRECTIONS.questionnaire()["data"]]
PROMPT = [11, 222, 3333, 44]


def answers(seed: int) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    return dict(zip(ITEMS, rng.integers(1, 6, len(ITEMS)).tolist(), strict=True))


def enrol(
    tenancy: Tenancy, who: str, name: str, body: dict[str, Any], **params: str
) -> httpx.Response:
    return tenancy.call(who, "PUT", f"/v1/personas/{name}", json=body, params=params)


def remove(tenancy: Tenancy, who: str, *names: str) -> None:
    for name in names:
        assert tenancy.call(who, "DELETE", f"/v1/personas/{name}").status_code == 204


def test_a_questionnaire_becomes_a_persona_that_answers_as_itself(
    tenancy: Tenancy, reference: Any
) -> None:
    shown = tenancy.call("globex", "GET", "/v1/questionnaire").json()
    assert [item["id"] for item in shown["data"]] == ITEMS
    reply = enrol(tenancy, "globex", "mia", {"answers": answers(1)})
    assert reply.status_code == 201, reply.text
    made = DIRECTIONS.from_answers("mia", answers(1))
    assert reply.json()["digest"] == made.digest
    for _ in range(4):  # whichever process answers
        answered = tenancy.complete(
            "globex", persona="mia", prompt=PROMPT, logprobs=0, max_tokens=4, return_token_ids=True
        )
        assert answered.headers["x-palign-persona"].startswith(f"mia@{made.digest[:12]};")
        (choice,) = answered.json()["choices"]
        start = len(PROMPT) - 1
        tokens = [*PROMPT, *choice["token_ids"]]
        wanted = logprobs(reference, tokens, [(made, 1.0)], start)[start:]
        plain = logprobs(reference, tokens, [], start)[start:]
        said = np.array(choice["logprobs"]["token_logprobs"])
        assert np.abs(said - wanted).max() < 1e-4
        assert np.abs(said - plain).max() > 1e-3
    remove(tenancy, "globex", "mia")


def test_anybodys_key_may_see_the_questionnaire_and_only_managers_enrol(tenancy: Tenancy) -> None:
    assert tenancy.call("acme-use", "GET", "/v1/questionnaire").status_code == 200
    refused = enrol(tenancy, "acme-use", "x", {"traits": {"E": 1}})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "persona_forbidden")


def test_a_tenants_quota_and_namespace_count(tenancy: Tenancy) -> None:
    for name in ("one", "two"):
        assert enrol(tenancy, "acme", name, {"traits": {"E": 1}}).status_code == 201
    beyond = enrol(tenancy, "acme", "three", {"traits": {"E": 1}})
    assert beyond.status_code == 403
    assert "the quota is 3" in beyond.json()["error"]["message"]
    # Another's of the same name is another's.
    assert enrol(tenancy, "globex", "one", {"traits": {"E": -1}}).status_code == 201
    assert tenancy.complete("acme-use", persona="one").status_code == 200
    remove(tenancy, "acme", "one", "two")
    assert tenancy.complete("acme-use", persona="one").status_code == 404
    assert tenancy.complete("globex", persona="one").status_code == 200
    remove(tenancy, "globex", "one")


def test_enrolments_are_counted_over_all_processes_and_audited_without_answers(
    tenancy: Tenancy,
) -> None:
    before = scrape(tenancy)
    item = ITEMS[0]
    digest = enrol(tenancy, "globex", "noted", {"answers": answers(2)}).json()["digest"]
    enrol(tenancy, "globex", "noted", {"answers": answers(2)})
    enrol(tenancy, "globex", "noted", {"answers": {item: 987_654_321}})
    after = scrape(tenancy)
    for outcome in ("created", "unchanged", "refused"):
        name = "palign_enrolments_total"
        assert value(after, name, outcome=outcome) - value(before, name, outcome=outcome) == 1
    for _ in range(50):  # a line is written once its answer is on the way
        lines = [line for line in tenancy.log("managed") if line.get("persona") == "noted"]
        if len(lines) == 3:
            break
        time.sleep(0.1)
    found = [(line["status"], line.get("outcome"), line.get("digest")) for line in lines]
    assert found == [(201, "created", digest), (200, "unchanged", digest), (400, None, None)]
    assert all(line["made_of"] == "answers" for line in lines)
    log = tenancy.server.log.read_text()
    assert f'"{item}"' not in log
    assert "987654321" not in log
    remove(tenancy, "globex", "noted")


def test_many_at_once_are_all_made_and_each_is_its_own(tenancy: Tenancy) -> None:
    names = [f"crowd{number}" for number in range(40)]
    with ThreadPoolExecutor(16) as pool:
        replies = list(
            pool.map(
                lambda pair: enrol(tenancy, "globex", pair[1], {"answers": answers(pair[0])}),
                enumerate(names),
            )
        )
    for seed, (name, reply) in enumerate(zip(names, replies, strict=True)):
        assert reply.status_code == 201, reply.text
        assert reply.json()["digest"] == DIRECTIONS.from_answers(name, answers(seed)).digest
    remove(tenancy, "globex", *names)


def test_deleted_personas_leave_every_process_memory(tenancy: Tenancy) -> None:
    """``palign_host_cache_personas`` is the sum over both processes.

    What tests before this one deleted may leave at any moment, so more are made here than were held at first.
    """

    def held() -> float:
        return value(scrape(tenancy), "palign_host_cache_personas")

    before = held()
    names = [f"leaving{number}" for number in range(int(before) + 4)]
    for seed, name in enumerate(names):
        assert enrol(tenancy, "globex", name, {"answers": answers(seed)}).status_code == 201
        assert tenancy.complete("globex", persona=name).status_code == 200
    assert held() > before
    remove(tenancy, "globex", *names)
    deadline = time.monotonic() + forgetting.SECONDS + 10
    while held() > before and time.monotonic() < deadline:
        time.sleep(1)
    assert held() <= before


@pytest.mark.parametrize("body", [b"[" * 12_000, b'{"answers":[' + b"{}," * 4000, b"x" * 12_000])
def test_junk_is_refused_while_others_are_answered(tenancy: Tenancy, body: bytes) -> None:
    headers = {"content-type": "application/json"}

    def junk(_: int) -> int:
        path = "/v1/personas/x"
        return tenancy.call("acme", "PUT", path, content=body, headers=headers).status_code

    with ThreadPoolExecutor(8) as pool:
        replies = pool.map(junk, range(40))
        began = time.monotonic()
        assert enrol(tenancy, "globex", "beside", {"traits": {"E": 1}}).status_code in (200, 201)
        assert tenancy.complete("globex", persona="beside").status_code == 200
        assert time.monotonic() - began < 5
        assert set(replies) == {400}
    remove(tenancy, "globex", "beside")
