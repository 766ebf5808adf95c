"""The registry on real SQLite files and a real PostgreSQL server."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event

from tests.conftest import TINY, run_python
from tests.personas import random_persona
from vllm_palign import (
    PalignError,
    PalignStartupError,
    Persona,
    PersonaExists,
    PersonaForbidden,
    PersonaInvalid,
    PersonaNotFound,
)
from vllm_palign.container import digest_of
from vllm_palign.errors import PersonaCorrupt, RegistryFull, RegistryUnavailable
from vllm_palign.registry import Outcome, Record, Registry
from vllm_palign.registry.records import MAX_TEXT
from vllm_palign.registry.schema import metadata
from vllm_palign.tenants.tenant import Tenant

ALL = Tenant()
ACME = Tenant("acme", shared=frozenset({"a", "b"}))


def persona(seed: int) -> Persona:
    return random_persona(seed, **TINY, steered=6)


def put(
    registry: Registry, name: str, seed: int, tenant: Tenant = ALL, **options: Any
) -> tuple[Record, Outcome]:
    content = persona(seed)
    return registry.put(tenant, name, content, content.to_bytes(), **options)


@pytest.fixture
def registry(store_url: str) -> Registry:
    opened = Registry(store_url, timeout=10)
    opened.migrate()
    return opened


def count(registry: Registry, table: str) -> int:
    with registry._engine.connect() as connection:
        return int(connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one())


def test_put_is_idempotent_and_replaces_only_when_told(registry: Registry) -> None:
    first, outcome = put(registry, "a", 1)
    assert outcome is Outcome.CREATED
    assert put(registry, "a", 1) == (first, Outcome.UNCHANGED)
    with pytest.raises(PersonaExists, match="replace=true"):
        put(registry, "a", 2)
    assert registry.get(ALL, "a") == first
    assert put(registry, "a", 2, replace=True)[1] is Outcome.REPLACED
    assert registry.get(ALL, "a").digest == persona(2).digest
    assert registry.blob(persona(2).digest) == persona(2).to_bytes()


def test_what_is_read_is_of_one_moment_also_while_it_is_replaced(registry: Registry) -> None:
    """A replaced persona's bytes are gone: two look-ups would find a name without them."""
    put(registry, "a", 0)
    over = threading.Event()

    def replace_it() -> None:
        for seed in range(1, 40):
            put(registry, "a", seed, replace=True)
        over.set()

    with ThreadPoolExecutor(1) as threads:
        replacing = threads.submit(replace_it)
        while not over.is_set() and not replacing.done():
            record, data = registry.read(ALL, "a")
            assert digest_of(data) == record.digest
        replacing.result()
    assert registry.read(ALL, "a")[0].digest == persona(39).digest


def test_reading_shows_a_tenant_its_own_before_a_shared_one_and_nothing_else(
    registry: Registry,
) -> None:
    for seed, name in enumerate("abc"):
        put(registry, name, seed)
    put(registry, "b", 10, ACME)
    assert registry.read(ACME, "a") == (registry.get(ALL, "a"), persona(0).to_bytes())
    assert registry.read(ACME, "b") == (registry.get(ACME, "b"), persona(10).to_bytes())
    for name in ("c", "nobody"):
        with pytest.raises(PersonaNotFound, match=name):
            registry.read(ACME, name)


def test_bytes_stay_as_long_as_a_name_needs_them(registry: Registry) -> None:
    put(registry, "a", 1)
    put(registry, "b", 1, ACME)
    assert count(registry, "blobs") == 1
    registry.delete(ALL, "a")
    assert registry.blob(persona(1).digest)
    put(registry, "b", 2, ACME, replace=True)
    with pytest.raises(PersonaNotFound):
        registry.blob(persona(1).digest)
    registry.delete(ACME, "b")
    assert count(registry, "blobs") == count(registry, "personas") == 0


def test_a_purge_takes_all_of_one_owner_and_no_bytes_of_another(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("a", 1), ("b", 2), ("c", 2)):
        put(registry, name, seed, ACME)
    put(registry, "a", 2, ALL)
    monkeypatch.setattr("vllm_palign.registry.registry._PURGED_AT_ONCE", 2)
    assert registry.purge("acme") == 3
    assert registry.counts() == {"": 1} and registry.purge("acme") == 0
    assert registry.registered({persona(1).digest, persona(2).digest}) == {persona(2).digest}


def test_a_tenant_sees_its_own_and_what_is_shared_with_it(registry: Registry) -> None:
    for seed, name in enumerate("abc"):
        put(registry, name, seed)
    put(registry, "b", 10, ACME)
    put(registry, "z", 11, ACME)
    put(registry, "a", 12, Tenant("other"))
    seen = {name: record.tenant for name, record in registry.lookup(ACME, "abcz").items()}
    assert seen == {"a": "", "b": "acme", "z": "acme"}
    pages, after = [], ""
    while True:
        page = registry.page(ACME, limit=1, after=after)
        pages += [(record.tenant, record.name) for record in page.records]
        if not page.has_more:
            break
        after = page.records[-1].name
    assert pages == [("", "a"), ("acme", "b"), ("acme", "z")]
    with pytest.raises(PersonaForbidden, match="shared"):
        registry.delete(ACME, "a")
    with pytest.raises(PersonaNotFound):
        registry.delete(ACME, "c")
    assert registry.counts() == {"": 3, "acme": 2, "other": 1}


def test_names_sort_and_match_as_bytes(registry: Registry) -> None:
    for seed, name in enumerate(("b", "B", "a-", "a.", "a_", "A")):
        put(registry, name, seed)
    names = [record.name for record in registry.page(ALL, limit=10).records]
    assert names == sorted(names, key=str.encode) == ["A", "B", "a-", "a.", "a_", "b"]
    assert not registry.lookup(Tenant("acme"), ["%", "_"])


def test_the_quota_counts_names_not_replacements(registry: Registry) -> None:
    tenant = Tenant("small", quota=2)
    put(registry, "a", 1, tenant)
    put(registry, "b", 2, tenant)
    with pytest.raises(PersonaForbidden, match="quota is 2"):
        put(registry, "c", 3, tenant)
    put(registry, "b", 3, tenant, replace=True)
    registry.delete(tenant, "a")
    put(registry, "c", 4, tenant)


def test_importing_keeps_what_is_there_and_reports_it(registry: Registry) -> None:
    put(registry, "a", 1)
    items = [(name, persona(seed), persona(seed).to_bytes()) for seed, name in ((2, "a"), (3, "b"))]
    assert [record.name for record in registry.add_missing(ALL, items)] == ["a"]
    assert [record.name for record in registry.add_missing(ALL, items)] == ["a"]
    assert registry.get(ALL, "a").digest == persona(1).digest
    assert registry.get(ALL, "b").digest == persona(3).digest


def test_changed_bytes_are_refused_and_mended_by_the_next_put(registry: Registry) -> None:
    put(registry, "a", 1)
    with registry._engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE blobs SET data = :data"), {"data": b"\x00" * 99})
    with pytest.raises(PersonaCorrupt, match="have changed"):
        registry.blob(persona(1).digest)
    assert put(registry, "a", 1)[1] is Outcome.UNCHANGED
    assert registry.blob(persona(1).digest) == persona(1).to_bytes()


def test_two_replacing_writers_leave_one_whole_persona(registry: Registry) -> None:
    put(registry, "a", 0)
    digests = {persona(seed).digest for seed in range(9)}

    def write(seed: int) -> None:
        for _ in range(5):
            put(registry, "a", seed, replace=True)
            put(registry, f"own{seed}", seed)
            registry.delete(ALL, f"own{seed}")

    def read(_: int) -> None:
        for _ in range(20):
            assert registry.get(ALL, "a").digest in digests

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(write, seed) for seed in range(1, 7)] + [
            pool.submit(read, 0) for _ in range(2)
        ]:
            done.result()
    assert count(registry, "personas") == count(registry, "blobs") == 1
    assert registry.blob(registry.get(ALL, "a").digest)


MIGRATE = "import sys; from vllm_palign.registry import Registry; Registry(sys.argv[1]).migrate()"


def test_servers_that_start_at_once_migrate_once(store_url: str) -> None:
    starting = [
        subprocess.Popen([sys.executable, "-c", MIGRATE, store_url], stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for process in starting:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()[-2000:]
    assert put(Registry(store_url), "a", 1)[1] is Outcome.CREATED


def test_the_migrations_make_the_tables_of_the_schema(registry: Registry) -> None:
    with registry._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_a_newer_schema_is_refused(registry: Registry) -> None:
    with registry._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(PalignStartupError, match=r"version '9999'.*upgrade vllm-palign"):
        registry.migrate()


def test_a_full_disk_refuses_the_new_and_keeps_the_old(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'small.sqlite'}")
    registry.migrate()
    put(registry, "a", 1)
    registry.close()
    event.listen(
        registry._engine,
        "connect",
        lambda connection, _: connection.execute("PRAGMA max_page_count = 40"),
    )
    with pytest.raises(RegistryFull, match="nothing was changed"):
        for seed in range(2, 200):
            put(registry, f"p{seed}", seed)
    kept = registry.page(ALL, limit=100).records
    assert all(registry.blob(record.digest) for record in kept)
    for record in kept[1:]:
        registry.delete(ALL, record.name)
    assert put(registry, "after", 99)[1] is Outcome.CREATED


def test_a_database_that_is_not_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    for url in (
        f"sqlite:///{tmp_path}/no/such/folder/r.sqlite",
        "postgresql://palign@127.0.0.1:1/x",
    ):
        with pytest.raises(RegistryUnavailable):
            Registry(url, timeout=2).page(ALL, limit=1)


@pytest.mark.parametrize(
    "url",
    ["", "alice", "sqlite://", "sqlite:///:memory:", "mysql://u:secret@h/d", "file:///etc/passwd",
     "postgresql+asyncpg://u:secret@h/d", "sqlite:///x?mode=memory&uri=true"],
)  # fmt: skip
def test_other_urls_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(PalignStartupError, match="--palign-store") as caught:
        Registry(url)
    assert "secret" not in str(caught.value)


def test_a_private_registry_goes_with_its_process() -> None:
    code = (
        "import json, os\nfrom vllm_palign.registry import Registry\n"
        "from vllm_palign.config.store_url import private_store\n"
        "url = private_store(); Registry(url).migrate()\n"
        "if os.fork() == 0: raise SystemExit\n"
        "os.wait()\n"
        "path = url.removeprefix('sqlite:///')\n"
        "print('RESULT ' + json.dumps([path, os.path.exists(path), oct(os.stat(os.path.dirname(path)).st_mode)]))"
    )
    path, was_there, mode = run_python(code)
    assert was_there
    assert mode.endswith("700")
    assert not Path(path).parent.exists()


def test_a_private_registry_of_a_killed_process_goes_with_the_next(tmp_path: Path) -> None:
    code = (
        "import json, os, signal\nfrom vllm_palign.config.store_url import private_store\n"
        "url = private_store()\nprint('RESULT ' + json.dumps(url), flush=True)\n"
    )
    killed = run_python(code + "os._exit(0)", TMPDIR=str(tmp_path))
    left = Path(killed.removeprefix("sqlite:///")).parent
    assert left.exists()
    foreign = tmp_path / "palign-registry-of-mine"
    foreign.mkdir()
    for name in (".palign-lock", "results.csv"):
        (foreign / name).touch()
    run_python(code, TMPDIR=str(tmp_path))
    assert list(tmp_path.iterdir()) == [foreign]
    assert (foreign / "results.csv").exists()


def test_another_process_that_leaves_does_not_take_the_log_with_it(tmp_path: Path) -> None:
    """As an API server, ``palign tenants purge`` or a rolling restart does, while this process has several connections."""
    url = f"sqlite:///{tmp_path / 'r.sqlite'}"
    registry = Registry(url)
    registry.migrate()
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(registry._engine.connect())
    other = (
        "import json\nfrom vllm_palign.registry import Registry\n"
        f"registry = Registry({url!r}); counts = registry.counts(); registry.close()\n"
        "print('RESULT ' + json.dumps(counts))"
    )
    for count in (1, 2):
        put(registry, f"p{count}", count, ACME)
        assert run_python(other) == {"acme": count}
    registry.close()
    assert Registry(url).counts() == {"acme": 2}


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        Registry(f"sqlite:///{tmp_path / 'r.sqlite'}").migrate()
    finally:
        os.umask(before)
    assert {one.name: oct(one.stat().st_mode)[-3:] for one in tmp_path.iterdir()} == {
        one.name: "600" for one in tmp_path.iterdir()
    }


@pytest.mark.parametrize(
    "header",
    [{"description": "\ud800"}, {"base_model": "a\0b"}, {"fit": {"deep": functools.reduce(lambda a, _: [a], range(400), [])}}],
    ids=["surrogate", "NUL", "deep"],
)  # fmt: skip
def test_headers_that_could_not_be_shown_again_are_refused(
    tmp_path: Path, header: dict[str, Any]
) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'r.sqlite'}")
    registry.migrate()
    odd = replace(persona(1), digest="0" * 64, **header)
    with pytest.raises(PersonaInvalid, match="header"):
        registry.put(ALL, "a", odd, b"")
    assert registry.counts() == {}


def test_a_record_keeps_the_beginning_of_long_texts(registry: Registry) -> None:
    """A page of records is held in memory; the whole texts are in the file."""
    long = replace(
        persona(1), name="n" * 9999, base_model="b" * 9999, method="m" * 9999,
        description="d" * 9999, digest="",
    )  # fmt: skip
    registry.put(ALL, "a", long, long.to_bytes())
    (record,) = registry.page(ALL, limit=1).records
    texts = (record.base_model, *record.metadata.values())
    assert {len(text) for text in texts if isinstance(text, str)} == {MAX_TEXT}


def test_errors_of_the_tree_know_their_status() -> None:
    error = RegistryUnavailable("x")
    assert isinstance(error, PalignError)
    assert (error.status, error.headers["retry-after"]) == (503, "2")
