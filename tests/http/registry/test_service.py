"""Management of a running server's personas, and which process and server sees what when."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Server, stop_server
from tests.http.registry.calls import (
    API_KEY,
    HEADERS,
    PROMPT,
    ask,
    check,
    connect,
    error_of,
    persona,
    put,
    store_of,
)
from tests.http.registry.conftest import start_service
from tests.oracle import logprobs
from tests.personas import random_persona
from tests.shown import Measured
from vllm_palign.registry import Registry
from vllm_palign.server.models import MAX_LISTED
from vllm_palign.tenants.tenant import Tenant


def test_a_persona_is_put_used_replaced_and_removed(web: httpx.Client, reference: Any) -> None:
    first = put(web, "life", 1)
    assert first.status_code == 201
    assert first.json()["digest"] == persona(1).digest
    assert put(web, "life", 1).status_code == 200
    error_of(put(web, "life", 2), 409, "persona_exists")
    reply = ask(web, "life")
    check(reply, 1, reference)
    assert reply.headers["x-palign-persona"].startswith(f"life@{persona(1).digest[:12]};")
    replaced = put(web, "life", 2, replace="true")
    assert (replaced.status_code, replaced.json()["digest"]) == (200, persona(2).digest)
    check(ask(web, "life"), 2, reference)
    shown = web.get("/v1/personas/life").json()
    assert shown["object"] == "persona"
    assert (shown["id"], shown["digest"], shown["fit"]) == ("life", persona(2).digest, {})
    gone = web.delete("/v1/personas/life")
    assert (gone.status_code, gone.content) == (204, b"")
    error_of(ask(web, "life"), 404, "persona_not_found")
    error_of(web.get("/v1/personas/life"), 404, "persona_not_found")
    error_of(web.delete("/v1/personas/life"), 404, "persona_not_found")


def test_a_replaced_persona_never_meets_its_predecessors_kv(web: httpx.Client) -> None:
    prompt = [7 + 13 * index for index in range(100)]
    web.headers["x-data-parallel-rank"] = "0"  # each engine has a cache of its own

    def cached() -> int:
        reply = ask(web, {"id": "kv", "scope": "all"}, prompt=prompt)
        return int((reply.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)

    for seed, known in ((1, False), (2, False), (1, True)):
        put(web, "kv", seed, replace="true")
        assert (cached() > 0) is known
        assert cached() > 0
    web.delete("/v1/personas/kv")


def test_a_running_answer_is_not_touched_by_replace_and_delete(
    web: httpx.Client, service: Server, reference: Any
) -> None:
    put(web, "running", 3)
    tokens: list[int] = []
    with connect(service) as other, other.stream(
        "POST", "/v1/completions",
        json={"model": "base@running", "prompt": PROMPT, "max_tokens": 120, "temperature": 0,
              "ignore_eos": True, "stream": True, "return_token_ids": True},
    ) as reply:  # fmt: skip
        for number, line in enumerate(reply.iter_lines()):
            if number == 4:
                assert put(web, "running", 4, replace="true").status_code == 200
                check(ask(web, "running"), 4, reference)
                assert web.delete("/v1/personas/running").status_code == 204
            if line.startswith("data: {"):
                tokens += json.loads(line[6:])["choices"][0].get("token_ids") or []
    assert len(tokens) == 120
    # Greedy, so every token is the likeliest one under the old persona.
    start = len(PROMPT) - 1
    alone = logprobs(reference, [*PROMPT, *tokens], [(persona(3), 1.0)], start)[start:]
    other_way = logprobs(reference, [*PROMPT, *tokens], [(persona(4), 1.0)], start)[start:]
    assert alone.mean() > other_way.mean() + 1


def test_listing_pages_through_everything(web: httpx.Client) -> None:
    names = [f"page{number:02}" for number in range(7)]
    for seed, name in enumerate(names):
        put(web, name, seed)
    found, after, pages = [], "", 0
    while True:
        page = web.get("/v1/personas", params={"limit": 3, "after": after}).json()
        assert page["object"] == "list"
        found += [entry["id"] for entry in page["data"]]
        pages += 1
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert [name for name in found if name.startswith("page")] == names
    assert found == sorted(found)
    for name in names:
        web.delete(f"/v1/personas/{name}")


def test_the_openai_client_sees_personas_as_models(
    web: httpx.Client, service: Server, reference: Any
) -> None:
    put(web, "as-model", 5)
    other_shape = random_persona(0, num_layers=2, num_heads=4, head_dim=32)
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=API_KEY, max_retries=0)
    models = [model.id for model in client.models.list()]
    assert models[0] == "base"
    assert "base@as-model" in models
    raw = client.completions.with_raw_response.create(
        model="base@as-model", prompt=PROMPT, max_tokens=4, temperature=0, logprobs=0,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    # Not its text: tokens that end within a character have none.
    check(raw.http_response, 5, reference)
    refused = web.put("/v1/personas/other", content=other_shape.to_bytes())
    assert "num_layers is 2" in error_of(refused, 400, "persona_incompatible")["message"]
    web.delete("/v1/personas/as-model")


def test_the_models_list_ends_after_100_personas(web: httpx.Client, service: Server) -> None:
    """Registered by another process, as by a server of the same store; the first by name of all."""
    names = [f"0{number:03}" for number in range(MAX_LISTED + 1)]
    registry = Registry(store_of(service))
    content = persona(30)
    registry.add_missing(Tenant(), [(name, content, content.to_bytes()) for name in names])
    listed = [model["id"] for model in web.get("/v1/models").json()["data"]]
    assert listed == ["base", *(f"base@{name}" for name in names[:MAX_LISTED])]
    assert ask(web, names[-1]).status_code == 200
    for name in names:
        registry.delete(Tenant(), name)


REFUSED: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "not a persona": ("PUT", "/x", {"content": b"not safetensors"}, 400, "persona_invalid"),
    "a pickle": ("PUT", "/x", {"content": b"\x80\x04."}, 400, "persona_invalid"),
    "nothing": ("PUT", "/x", {}, 400, "persona_invalid"),
    "too large": ("PUT", "/x", {"content": bytes((16 << 20) + 1)}, 413, "persona_invalid"),
    "too large in pieces": ("PUT", "/x", {"content": iter([bytes(1 << 20)] * 17)}, 413, "persona_invalid"),
    "path-like name": ("PUT", "/..%5Cx", {}, 400, "persona_invalid"),
    "name of another alphabet": ("PUT", "/%D0%B0lice", {}, 400, "persona_invalid"),
    "long name": ("PUT", "/" + "x" * 129, {}, 400, "persona_invalid"),
    "replace maybe": ("PUT", "/x", {"params": {"replace": "maybe"}}, 400, "persona_invalid"),
    "limit 0": ("GET", "", {"params": {"limit": 0}}, 400, "persona_invalid"),
    "limit too large": ("GET", "", {"params": {"limit": 10**9}}, 400, "persona_invalid"),
    "limit of words": ("GET", "", {"params": {"limit": "many"}}, 400, "persona_invalid"),
    "after what": ("GET", "", {"params": {"after": "a b"}}, 400, "persona_invalid"),
    "answers, without directions": (
        "PUT", "/x", {"json": {"traits": {"E": 1}}}, 501, "directions_missing",
    ),
    "unknown": ("GET", "/nobody", {}, 404, "persona_not_found"),
    "other method": ("PATCH", "/x", {}, 405, "method_not_allowed"),
    "other method of the list": ("POST", "", {}, 405, "method_not_allowed"),
    "a deeper path": ("GET", "/x/y", {}, 404, "not_found"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_management_errors_are_openai_error_objects(web: httpx.Client, fault: str) -> None:
    method, path, options, status, code = REFUSED[fault]
    error = error_of(web.request(method, f"/v1/personas{path}", **options), status, code)
    assert error["message"]


def test_vllms_api_key_guards_management(service: Server) -> None:
    for method, path in (("GET", ""), ("PUT", "/x"), ("DELETE", "/x"), ("GET", "/x")):
        reply = httpx.request(method, f"{service.url}/v1/personas{path}")
        assert reply.status_code == 401


def test_the_openapi_document_shows_the_routes(service: Server) -> None:
    document = httpx.get(f"{service.url}/openapi.json", headers=HEADERS).json()
    routes = {
        path: sorted(document["paths"][path]) for path in document["paths"] if "personas" in path
    }
    assert routes == {
        "/v1/personas": ["get"],
        "/v1/personas/{persona_id}": ["delete", "get", "put"],
    }
    body = document["paths"]["/v1/personas/{persona_id}"]["put"]["requestBody"]
    assert set(body["content"]) == {"application/octet-stream", "application/json"}
    assert list(document["paths"]["/v1/questionnaire"]) == ["get"]


def test_every_api_server_process_sees_a_change_at_once(
    web: httpx.Client, service: Server, reference: Any
) -> None:
    """Eight open connections lie on both processes, because each goes to the one with fewer."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(service)) for _ in range(8)]
        for client in clients:
            assert client.get("/health").status_code == 200
        for seed in (6, 7, 8):
            assert put(web, "fresh", seed, replace="true").status_code in (200, 201)
            for client in clients:
                check(ask(client, "fresh"), seed, reference)
        web.delete("/v1/personas/fresh")
        for client in clients:
            error_of(ask(client, "fresh"), 404, "persona_not_found")


@pytest.mark.shows(
    "features", "data parallel 2", note="two API server processes; each engine asked by its rank"
)
def test_both_data_parallel_engines_serve_what_was_just_put(
    web: httpx.Client, service: Server, reference: Any, measured: Measured
) -> None:
    before = answered(service)
    errors: dict[str, float] = {}
    effects = []
    for seed in (21, 22):
        put(web, "parallel", seed, replace="true")
        for rank in ("0", "1"):
            web.headers["x-data-parallel-rank"] = rank
            steered = check(ask(web, "parallel"), seed, reference)
            plain = check(ask(web, None), None, reference)
            effects.append(steered.pop("effect"))
            errors |= {
                f"{name} rank {rank}, {seed}": error for name, error in (steered | plain).items()
            }
    web.delete("/v1/personas/parallel")
    measured({**errors, "effect": min(effects)})
    assert min(effects) > 0.1
    grown = {engine: count - before.get(engine, 0) for engine, count in answered(service).items()}
    assert grown == {"0": 4, "1": 4}


def answered(server: Server) -> dict[str, float]:
    """vLLM's own count of finished requests by engine."""
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text):
        for sample in family.samples:
            if sample.name == "vllm:request_success_total":
                engine = sample.labels["engine"]
                counts[engine] = counts.get(engine, 0) + sample.value
    return counts


def test_several_servers_share_a_registry_and_survive_each_others_death(
    web: httpx.Client, service: Server, tiny_model: Path, tmp_path: Path, reference: Any
) -> None:
    """The second one is tensor parallel. Then one of its workers is killed in the middle of an answer: its
    client sees an error."""
    second = start_service(
        tiny_model, tmp_path / "second.log", store_of(service),
        "--tensor-parallel-size", "2", "--distributed-executor-backend", "mp",
    )  # fmt: skip
    try:
        with connect(second) as other:
            assert put(other, "both", 1).status_code == 201
            check(ask(web, "both"), 1, reference)
            assert put(web, "both", 2, replace="true").status_code == 200
            check(ask(other, "both"), 2, reference)
            workers = [
                process for process in psutil.Process(second.process.pid).children(recursive=True)
                if "Worker" in process.name()
            ]  # fmt: skip
            assert len(workers) == 2
            threading.Timer(0.3, workers[1].kill).start()
            assert any(is_an_error(other, reference) for _ in range(500))
        check(ask(web, "both"), 2, reference)
        assert web.delete("/v1/personas/both").status_code == 204
    finally:
        stop_server(second)


def is_an_error(web: httpx.Client, reference: Any) -> bool:
    """Whether a dead worker was noticed; as long as it is not, answers are right."""
    try:
        reply = ask(web, "both", max_tokens=8)
    except httpx.TransportError:
        return True
    if reply.status_code >= 500:
        return True
    check(reply, 2, reference)
    return False


def test_two_replacing_writers_leave_one_of_their_personas(service: Server, reference: Any) -> None:
    seeds = (13, 14, 15, 16)

    def write(seed: int) -> None:
        with connect(service) as client:
            for _ in range(10):
                assert put(client, "contested", seed, replace="true").status_code in (200, 201)

    with ThreadPoolExecutor(4) as pool, connect(service) as reader:
        writing = [pool.submit(write, seed) for seed in seeds]
        while not all(future.done() for future in writing):
            reply = ask(reader, "contested")
            if reply.status_code == 404:  # not there yet
                continue
            check(reply, seed_of(reply.headers["x-palign-persona"], seeds), reference)
        for future in writing:
            future.result()
        shown = reader.get("/v1/personas/contested").json()["digest"]
        check(ask(reader, "contested"), seed_of(f"@{shown}", seeds), reference)


def seed_of(header: str, seeds: tuple[int, ...]) -> int:
    prefix = header.partition("@")[2][:12]
    (seed,) = [seed for seed in seeds if persona(seed).digest.startswith(prefix)]
    return seed
