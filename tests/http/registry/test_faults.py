"""What happens to a running server and its registry: each fault, and what clients then see."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
from local_postgres import Postgres

from tests.conftest import Server
from tests.http.registry.calls import ask, check, connect, error_of, persona, put, store_of

WRITE_LOCK = 0x70616C69676E
"""What every write of PostgreSQL's waits for, inside its transaction."""


def wait_until_it_is_back(web: httpx.Client) -> None:
    """No process goes by what it remembers; in an outage the registry is asked each 2 s."""
    for _ in range(100):
        if "palign_registry_down 1.0" not in web.get("/metrics").text:
            return
        time.sleep(0.2)
    raise AssertionError("the registry is still taken to be down")


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


def test_uploads_that_wait_for_their_turn_hold_no_request_up(
    web: httpx.Client, service: Server, reference: Any
) -> None:
    put(web, "early", 23)
    put(web, "late", 24)
    check(ask(web, "early"), 23, reference)

    def upload(number: int) -> httpx.Response:
        with connect(service) as client:
            return put(client, f"waiting{number}", number)

    with (
        psycopg.connect(store_of(service)) as blocker,
        ThreadPoolExecutor(16) as pool,
    ):
        blocker.execute("SELECT pg_advisory_xact_lock(%s)", [WRITE_LOCK])
        uploads = [pool.submit(upload, number) for number in range(16)]
        time.sleep(0.5)
        check(ask(web, "early"), 23, reference)
        check(ask(web, "late"), 24, reference)
        assert sum(future.done() for future in uploads) < 8, "requests stood in the uploads' queue"
        blocker.rollback()
        for number, future in enumerate(uploads):
            if future.result().status_code == 201:
                assert web.get(f"/v1/personas/waiting{number}").status_code == 200
            else:
                error_of(future.result(), 503, "registry_unavailable")


def only_what_is_in_memory_answers(
    web: httpx.Client, hot: str, seed: int, cold: str, reference: Any
) -> None:
    for _ in range(3):
        check(ask(web, hot), seed, reference)
        check(ask(web, None), None, reference)
        refused = ask(web, cold)
        assert "try again" in error_of(refused, 503, "registry_unavailable")["message"]
        assert int(refused.headers["retry-after"]) > 0
    assert [model["id"] for model in web.get("/v1/models").json()["data"]] == ["base"]
    listing = web.get("/v1/personas")
    error_of(listing, 503, "registry_unavailable")
    assert "retry-after" in listing.headers


def test_in_an_outage_hot_personas_and_plain_requests_answer_and_cold_ones_wait(
    web: httpx.Client, postgres: Postgres, reference: Any
) -> None:
    put(web, "hot", 17)
    put(web, "cold", 18)
    check(ask(web, "hot"), 17, reference)
    postgres.kill()
    try:
        only_what_is_in_memory_answers(web, "hot", 17, "cold", reference)
        assert "palign_registry_down 1.0" in web.get("/metrics").text
        for reply in (put(web, "x", 1), web.delete("/v1/personas/hot")):
            error_of(reply, 503, "registry_unavailable")
            assert "retry-after" in reply.headers
    finally:
        postgres.start()
    wait_until_it_is_back(web)
    check(ask(web, "cold"), 18, reference)
    check(ask(web, "hot"), 17, reference)


def test_a_database_that_hangs_is_an_outage_too(
    web: httpx.Client, postgres: Postgres, reference: Any
) -> None:
    """Its machine still takes what is sent, so no connection breaks."""
    put(web, "warm", 25)
    put(web, "frozen", 26)
    check(ask(web, "warm"), 25, reference)
    postgres.freeze()
    try:
        only_what_is_in_memory_answers(web, "warm", 25, "frozen", reference)
    finally:
        postgres.thaw()
    wait_until_it_is_back(web)
    check(ask(web, "frozen"), 26, reference)


def test_a_put_that_the_database_does_not_survive_leaves_nothing(
    web: httpx.Client, service: Server, postgres: Postgres, reference: Any
) -> None:
    put(web, "kept", 19)
    # Not closed politely: this connection dies too.
    blocker = psycopg.connect(store_of(service))
    blocker.execute("SELECT pg_advisory_xact_lock(%s)", [WRITE_LOCK])
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
    wait_until_it_is_back(web)
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
                    reply = put(client, f"written{seed}", seed)
                except httpx.TransportError:
                    continue
                if reply.status_code == 201:
                    acknowledged[f"written{seed}"] = seed
                elif crashed.is_set():
                    return

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, 1000 * number) for number in range(1, 5)]
        while len(acknowledged) < 20 and not any(future.done() for future in writing):
            time.sleep(0.01)
        crashed.set()
        postgres.kill()
        for future in writing:
            future.result()
    postgres.start()
    assert len(acknowledged) >= 20
    with connect(service) as client:
        wait_until_it_is_back(client)
        for name, seed in acknowledged.items():
            assert client.get(f"/v1/personas/{name}").json()["digest"] == persona(seed).digest
        name, seed = next(iter(acknowledged.items()))
        check(ask(client, name), seed, reference)
