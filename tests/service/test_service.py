"""A running server with two API server processes over PostgreSQL: management, visibility, outages."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import psycopg
import pytest
from local_postgres import Postgres

from tests.conftest import TINY, Server, stop_server
from tests.oracle import logprobs
from tests.personas import random_persona
from tests.service.conftest import API_KEY, start_service
from vllm_palign import Persona

HEADERS = {"authorization": f"Bearer {API_KEY}"}
PROMPT = [11, 222, 3333, 44]


def persona(seed: int) -> Persona:
    return random_persona(seed, **TINY, steered=6, scale=0.5)


def connect(server: Server) -> httpx.Client:
    """A client with one connection, and so with one of the API server processes."""
    limits = httpx.Limits(max_connections=1)
    return httpx.Client(base_url=server.url, headers=HEADERS, timeout=60, limits=limits)


@pytest.fixture
def web(service: Server) -> Iterator[httpx.Client]:
    with connect(service) as client:
        yield client


def put(web: httpx.Client, name: str, seed: int, **params: Any) -> httpx.Response:
    return web.put(f"/v1/personas/{name}", content=persona(seed).to_bytes(), params=params)


def ask(web: httpx.Client, name: Any, **fields: Any) -> httpx.Response:
    body = {"model": "base", "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "logprobs": 0,
            "return_token_ids": True, "persona": name, **fields}  # fmt: skip
    return web.post("/v1/completions", json=body)


def check(reply: httpx.Response, seed: int | None, reference: Any) -> None:
    """The answer is that of the persona ``seed``, or of nobody, and of no other."""
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    parts = [] if seed is None else [(persona(seed), 1.0)]
    wanted = logprobs(reference, [*PROMPT, *choice["token_ids"]], parts)[len(PROMPT) - 1 :]
    assert np.abs(np.array(choice["logprobs"]["token_logprobs"]) - wanted).max() < 1e-4


def error_of(reply: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return dict(error)


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

    def cached() -> int:
        reply = ask(web, "kv", prompt=prompt)
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
    alone = logprobs(reference, [*PROMPT, *tokens], [(persona(3), 1.0)])[len(PROMPT) - 1 :]
    other_way = logprobs(reference, [*PROMPT, *tokens], [(persona(4), 1.0)])[len(PROMPT) - 1 :]
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


def test_the_openai_client_sees_personas_as_models(web: httpx.Client, service: Server) -> None:
    put(web, "as-model", 5)
    other_shape = random_persona(0, num_layers=2, num_heads=4, head_dim=32)
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key=API_KEY, max_retries=0)
    models = [model.id for model in client.models.list()]
    assert models[0] == "base"
    assert "base@as-model" in models
    answer = client.completions.create(
        model="base@as-model", prompt="Once", max_tokens=2, temperature=0
    )
    assert answer.choices[0].text
    refused = web.put("/v1/personas/other", content=other_shape.to_bytes())
    assert "num_layers is 2" in error_of(refused, 400, "persona_incompatible")["message"]
    web.delete("/v1/personas/as-model")


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
    assert "application/octet-stream" in body["content"]


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


def test_several_servers_share_a_registry_and_survive_each_others_death(
    web: httpx.Client, service: Server, tiny_model: Path, tmp_path: Path, reference: Any
) -> None:
    """Then the second one's engine is killed in the middle of an answer: its client sees an error."""
    second = start_service(tiny_model, tmp_path / "second.log", store_of(service))
    try:
        with connect(second) as other:
            assert put(other, "both", 1).status_code == 201
            check(ask(web, "both"), 1, reference)
            assert put(web, "both", 2, replace="true").status_code == 200
            check(ask(other, "both"), 2, reference)
            (engine,) = [
                process for process in psutil.Process(second.process.pid).children(recursive=True)
                if "EngineCore" in process.name()
            ]  # fmt: skip
            threading.Timer(0.3, engine.kill).start()
            assert any(is_an_error(other, reference) for _ in range(500))
        check(ask(web, "both"), 2, reference)
        assert web.delete("/v1/personas/both").status_code == 204
    finally:
        stop_server(second)


def is_an_error(web: httpx.Client, reference: Any) -> bool:
    """Whether a dead engine was noticed; as long as it is not, answers are right."""
    try:
        reply = ask(web, "both", max_tokens=8)
    except httpx.TransportError:
        return True
    if reply.status_code >= 500:
        return True
    check(reply, 2, reference)
    return False


def store_of(server: Server) -> str:
    arguments = psutil.Process(server.process.pid).cmdline()
    return arguments[arguments.index("--palign-store") + 1]


def test_a_corrupt_blob_is_never_served(web: httpx.Client, service: Server, reference: Any) -> None:
    put(web, "corrupt", 9)
    put(web, "sound", 10)
    with psycopg.connect(store_of(service), autocommit=True) as database:
        database.execute(
            "UPDATE blobs SET data = set_byte(data, 900, 255 - get_byte(data, 900)) WHERE digest = %s",
            [persona(9).digest],
        )
    for _ in range(2):
        error_of(ask(web, "corrupt"), 500, "persona_corrupt")
    error_of(web.get("/v1/personas/corrupt"), 500, "persona_corrupt")
    check(ask(web, "sound"), 10, reference)
    check(ask(web, None), None, reference)
    assert put(web, "corrupt", 9).status_code == 200
    check(ask(web, "corrupt"), 9, reference)


def test_a_full_disk_loses_nothing_that_was_acknowledged(
    web: httpx.Client, service: Server, reference: Any
) -> None:
    """PostgreSQL's own error for a full disk, raised where rows are written."""
    put(web, "before-full", 11)
    with psycopg.connect(store_of(service), autocommit=True) as database:
        database.execute(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION "
            "'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
        )
        database.execute(
            "CREATE TRIGGER full_disk BEFORE INSERT ON blobs EXECUTE FUNCTION full_disk()"
        )
        try:
            error_of(put(web, "while-full", 12), 507, "registry_full")
            error_of(put(web, "before-full", 12, replace="true"), 507, "registry_full")
            check(ask(web, "before-full"), 11, reference)
            error_of(ask(web, "while-full"), 404, "persona_not_found")
        finally:
            database.execute("DROP FUNCTION full_disk CASCADE")
    assert put(web, "while-full", 12).status_code == 201


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


# From here on the database goes away and comes back: the last tests of the file.


def test_in_an_outage_hot_personas_and_plain_requests_answer_and_cold_ones_wait(
    web: httpx.Client, postgres: Postgres, reference: Any
) -> None:
    put(web, "hot", 17)
    put(web, "cold", 18)
    check(ask(web, "hot"), 17, reference)
    postgres.kill()
    try:
        for _ in range(3):
            check(ask(web, "hot"), 17, reference)
            check(ask(web, None), None, reference)
            refused = ask(web, "cold")
            assert "try again" in error_of(refused, 503, "registry_unavailable")["message"]
            assert int(refused.headers["retry-after"]) > 0
        models = web.get("/v1/models")
        assert [model["id"] for model in models.json()["data"]] == ["base"]
        for reply in (web.get("/v1/personas"), put(web, "x", 1), web.delete("/v1/personas/hot")):
            error_of(reply, 503, "registry_unavailable")
            assert "retry-after" in reply.headers
    finally:
        postgres.start()
    time.sleep(2.5)  # the pause between two tries in an outage
    check(ask(web, "cold"), 18, reference)
    check(ask(web, "hot"), 17, reference)


def test_a_put_that_the_database_does_not_survive_leaves_nothing(
    web: httpx.Client, service: Server, postgres: Postgres, reference: Any
) -> None:
    put(web, "kept", 19)
    # Not closed politely: this connection dies too.
    blocker = psycopg.connect(store_of(service))
    # What every write waits for, inside its transaction.
    blocker.execute("SELECT pg_advisory_xact_lock(%s)", [0x70616C69676E])
    with ThreadPoolExecutor(2) as pool:
        new = pool.submit(put, web, "unborn", 20)
        with connect(service) as other:
            replacing = pool.submit(put, other, "kept", 20, replace="true")
            time.sleep(0.5)
            postgres.kill()
            for future in (new, replacing):
                error_of(future.result(), 503, "registry_unavailable")
    blocker.close()
    postgres.start()
    time.sleep(2.5)
    error_of(ask(web, "unborn"), 404, "persona_not_found")
    check(ask(web, "kept"), 19, reference)
    assert put(web, "unborn", 20).status_code == 201


def test_what_was_acknowledged_before_a_crash_is_there_after_it(
    service: Server, postgres: Postgres, reference: Any
) -> None:
    acknowledged: dict[str, int] = {}
    crashed = threading.Event()

    def write(first: int) -> None:
        with connect(service) as client:
            for seed in range(first, first + 1000):
                try:
                    reply = put(client, f"ack{seed}", seed)
                except httpx.TransportError:
                    continue
                if reply.status_code == 201:
                    acknowledged[f"ack{seed}"] = seed
                elif crashed.is_set():
                    return

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, 1000 * number) for number in range(1, 5)]
        time.sleep(1)
        crashed.set()
        postgres.kill()
        for future in writing:
            future.result()
    postgres.start()
    time.sleep(2.5)
    assert len(acknowledged) > 20
    with connect(service) as client:
        for name, seed in acknowledged.items():
            assert client.get(f"/v1/personas/{name}").json()["digest"] == persona(seed).digest
        name, seed = next(iter(acknowledged.items()))
        check(ask(client, name), seed, reference)
