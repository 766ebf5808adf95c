"""A deleted persona is nowhere any more: not in this process, not in others, not in the database's files."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.personas import random_persona
from vllm_palign.admission.forgetting import Forgetting
from vllm_palign.admission.resolver import Resolver
from vllm_palign.errors import RegistryUnavailable
from vllm_palign.persona import Persona
from vllm_palign.registry import Registry
from vllm_palign.selection import Selection
from vllm_palign.shape import ModelShape
from vllm_palign.tenants.tenant import Tenant

SHAPE = ModelShape(**TINY, attention_layers=frozenset(range(3)), largest=1e38)


def resolver(url: str) -> Resolver:
    return Resolver(Registry(url), SHAPE, max_strength=3.0, cache_bytes=1 << 20)


def put(registry: Registry, name: str, seed: int, tenant: str = "", **options: bool) -> Persona:
    persona = random_persona(seed, **TINY, steered=6)
    registry.put(Tenant(tenant), name, persona, persona.to_bytes(), **options)
    return persona


def use(store: Resolver, name: str, strength: float = 1.0) -> None:
    store.resolve(Selection(((name, 1.0),), strength), Tenant())


def test_what_was_deleted_elsewhere_leaves_memory_at_the_next_look(store_url: str) -> None:
    here, there = resolver(store_url), Registry(store_url)
    there.migrate()
    kept, gone, replaced = (put(there, name, seed) for seed, name in enumerate(("a", "b", "c")))
    for name in "abc":
        use(here, name)
        use(here, name, 0.5)
    digests = {kept.digest, gone.digest, replaced.digest}
    assert here.held() == digests
    look = Forgetting(here).look
    look()
    assert here.held() == digests
    there.delete(Tenant(), "b")
    put(there, "c", 7, replace=True)
    look()
    assert here.held() == {kept.digest}
    assert gone.digest not in here.cache
    assert here.cache.held_bytes == 3 * 6 * TINY["head_dim"] * 4 // 3 + 2 * 6 * 4 + 2048
    assert not [digest for _, digest in here._known.values() if digest != kept.digest]


def test_bytes_that_another_name_still_has_stay(store_url: str) -> None:
    here, there = resolver(store_url), Registry(store_url)
    there.migrate()
    twin = put(there, "a", 1)
    put(there, "a", 1, "acme")
    use(here, "a")
    there.delete(Tenant("acme"), "a")
    Forgetting(here).look()
    assert here.held() == {twin.digest}
    use(here, "a")


def test_more_digests_than_fit_one_query_are_looked_at(store_url: str) -> None:
    registry = Registry(store_url)
    registry.migrate()
    kept = put(registry, "a", 1).digest
    many = {f"{number:064}" for number in range(1234)}
    assert registry.registered(many | {kept}) == {kept}
    assert registry.registered(set()) == set()


def test_it_happens_by_itself_within_the_time_that_is_promised(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'r.sqlite'}"
    there = Registry(url)
    there.migrate()
    here = resolver(url)
    put(there, "a", 1)
    use(here, "a")
    watching = Forgetting(here, seconds=0.05)
    watching.follow()
    try:
        there.delete(Tenant(), "a")
        deadline = time.monotonic() + 5
        while here.held() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not here.held()
    finally:
        watching.close()


class Failing(Registry):
    def registered(self, digests: object) -> set[str]:
        raise RegistryUnavailable("down")


def test_while_the_registry_is_down_nothing_is_dropped(tmp_path: Path) -> None:
    registry = Failing(f"sqlite:///{tmp_path / 'r.sqlite'}")
    registry.migrate()
    here = Resolver(registry, SHAPE, max_strength=3.0, cache_bytes=1 << 20)
    put(registry, "a", 1)
    use(here, "a")
    with pytest.raises(RegistryUnavailable):
        Forgetting(here).look()
    assert here.held()
    here.outage._over.clear()
    Forgetting(here).look()
    assert here.held()


def in_the_files(folder: Path, text: bytes) -> bool:
    return any(text in file.read_bytes() for file in folder.iterdir())


@pytest.mark.parametrize("way", ["deleted", "replaced"])
def test_nothing_of_it_is_left_in_sqlites_files(tmp_path: Path, way: str) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'r.sqlite'}")
    registry.migrate()
    persona = put(registry, "alice-of-all-names", 1)
    for seed in range(2, 20):
        put(registry, f"other{seed}", seed)
    needle = persona.offsets[0].tobytes()
    assert in_the_files(tmp_path, needle)
    if way == "deleted":
        registry.delete(Tenant(), "alice-of-all-names")
        assert not in_the_files(tmp_path, b"alice-of-all-names")
    else:
        put(registry, "alice-of-all-names", 99, replace=True)
    assert not in_the_files(tmp_path, needle)
    assert registry.registered({persona.digest}) == set()


def test_nothing_is_left_when_many_delete_at_once(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path / 'r.sqlite'}")
    registry.migrate()
    names = [f"gone{number}" for number in range(60)]
    needles = [put(registry, name, seed).offsets[0].tobytes() for seed, name in enumerate(names)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: registry.delete(Tenant(), name), names))
    Forgetting(Resolver(registry, SHAPE, max_strength=3.0, cache_bytes=1 << 20)).look()
    assert not any(in_the_files(tmp_path, needle) for needle in needles)
    assert not in_the_files(tmp_path, b"gone")


def test_what_a_reader_kept_in_the_log_leaves_it_at_the_next_look(tmp_path: Path) -> None:
    file = tmp_path / "r.sqlite"
    registry = Registry(f"sqlite:///{file}")
    registry.migrate()
    persona = put(registry, "a", 1)
    reader = sqlite3.connect(file, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM personas").fetchall()
    began = time.monotonic()
    registry.delete(Tenant(), "a")
    assert time.monotonic() - began < 1, "waited for somebody who reads"
    needle = persona.offsets[0].tobytes()
    assert in_the_files(tmp_path, needle)
    reader.close()
    Forgetting(Resolver(registry, SHAPE, max_strength=3.0, cache_bytes=1 << 20)).look()
    assert not in_the_files(tmp_path, needle)
