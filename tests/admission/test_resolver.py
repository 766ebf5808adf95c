"""Names to offsets: the host cache, and what counts while the registry is down."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.personas import random_persona
from vllm_palign import Persona, PersonaIncompatible, PersonaInvalid, PersonaNotFound
from vllm_palign.admission.cache import EffectCache, PersonaCache
from vllm_palign.admission.resolver import Resolver
from vllm_palign.effect import Effect
from vllm_palign.errors import PersonaCorrupt, RegistryUnavailable
from vllm_palign.registry import Record, Registry
from vllm_palign.selection import Selection
from vllm_palign.shape import ModelShape
from vllm_palign.tenants.tenant import Tenant

SHAPE = ModelShape(**TINY, attention_layers=frozenset(range(3)), largest=1e38)
ALL = Tenant()


def persona(seed: int) -> Persona:
    return random_persona(seed, **TINY, steered=6)


def named(*names: str) -> Selection:
    return Selection(tuple((name, 1.0) for name in sorted(names)))


class Failing(Registry):
    """A registry whose database can be switched off."""

    down = False
    calls = 0

    def lookup(self, tenant: Tenant, names: Iterable[str]) -> dict[str, Record]:
        self.calls += 1
        if self.down:
            raise RegistryUnavailable("down")
        return super().lookup(tenant, names)

    def blob(self, digest: str) -> bytes:
        if self.down:
            raise RegistryUnavailable("down")
        return super().blob(digest)

    def ping(self) -> None:
        if self.down:
            raise RegistryUnavailable("down")
        super().ping()


@pytest.fixture
def registry(tmp_path: Path) -> Failing:
    opened = Failing(f"sqlite:///{tmp_path / 'r.sqlite'}")
    opened.migrate()
    for seed, name in enumerate(("a", "b", "c")):
        put(opened, name, seed)
    return opened


def put(registry: Registry, name: str, seed: int, tenant: Tenant = ALL) -> str:
    content = persona(seed)
    registry.put(tenant, name, content, content.to_bytes(), replace=True)
    return content.digest


@pytest.fixture
def store(registry: Failing) -> Resolver:
    return Resolver(registry, SHAPE, max_strength=3.0, cache_bytes=1 << 20)


def test_a_change_made_elsewhere_counts_at_once(store: Resolver, registry: Failing) -> None:
    before = store.resolve(named("a"), ALL)
    elsewhere = Registry(str(registry._engine.url))
    digest = put(elsewhere, "a", 7)
    after = store.resolve(named("a"), ALL)
    assert before.digests["a"] == persona(0).digest
    assert after.digests["a"] == digest
    assert before.effect is not None and after.effect is not None
    assert before.effect.key != after.effect.key
    elsewhere.delete(ALL, "a")
    with pytest.raises(PersonaNotFound):
        store.resolve(named("a"), ALL)


def test_a_tenants_bound_is_the_smaller_one(store: Resolver) -> None:
    strong = Selection((("a", 1.0),), 2.0)
    store.resolve(strong, ALL)
    with pytest.raises(PersonaInvalid, match="at most 1"):
        store.resolve(strong, Tenant(max_strength=1.0))


def test_the_smallest_of_three_bounds_counts(store: Resolver, registry: Failing) -> None:
    mild = dataclasses.replace(persona(3), fit={"max_strength": 0.5, "items": ["q1"]}, digest="")
    registry.put(ALL, "mild", mild, mild.to_bytes())
    store.resolve(Selection((("mild", 1.0),), 0.5), Tenant(max_strength=1.0))
    with pytest.raises(PersonaInvalid, match=r"file allows at most 0\.5"):
        store.resolve(named("mild"), Tenant(max_strength=1.0))
    with pytest.raises(PersonaInvalid, match=r"this server allows at most 0\.25"):
        store.resolve(named("mild"), Tenant(max_strength=0.25))
    assert store.cache.get(mild.digest).fit == {"max_strength": 0.5}, (
        "all of the fit that serving needs"
    )


def test_a_persona_of_another_models_shape_is_refused(store: Resolver, registry: Failing) -> None:
    other = random_persona(0, num_layers=2, num_heads=4, head_dim=32)
    registry.put(ALL, "other", other, other.to_bytes())
    with pytest.raises(PersonaIncompatible, match="num_layers is 2"):
        store.resolve(named("other"), ALL)


def test_in_an_outage_hot_names_answer_and_cold_ones_do_not(
    store: Resolver, registry: Failing
) -> None:
    hot = store.resolve(named("a"), ALL).effect
    registry.down = True
    again = store.resolve(named("a"), ALL).effect
    assert hot is not None and again is not None
    assert again.key == hot.key
    for cold in (named("b"), named("a", "b"), named("nobody")):
        with pytest.raises(RegistryUnavailable, match="try again"):
            store.resolve(cold, ALL)
    calls = registry.calls
    for _ in range(50):
        store.resolve(named("a"), ALL)
    assert registry.calls == calls, "an outage is not asked again by every request"
    registry.down = False
    for _ in range(100):
        if not store.outage:
            break
        time.sleep(0.1)
    assert store.resolve(named("b"), ALL).digests["b"] == persona(1).digest


def test_in_an_outage_nobody_gets_what_only_another_tenant_had(
    store: Resolver, registry: Failing
) -> None:
    acme = Tenant("acme", shared=frozenset({"a"}))
    put(registry, "mine", 5, acme)
    store.resolve(named("mine"), acme)
    store.resolve(named("a"), acme)
    registry.down = True
    store.resolve(named("mine", "a"), acme)
    for stranger in (Tenant("globex", shared=frozenset({"a"})), ALL):
        with pytest.raises(RegistryUnavailable):
            store.resolve(named("mine"), stranger)
    with pytest.raises(RegistryUnavailable):
        store.resolve(named("a"), Tenant("acme", shared=frozenset()))


def test_a_deleted_persona_stays_deleted_in_an_outage(store: Resolver, registry: Failing) -> None:
    store.resolve(named("a"), ALL)
    registry.delete(ALL, "a")
    with pytest.raises(PersonaNotFound):
        store.resolve(named("a"), ALL)
    registry.down = True
    with pytest.raises(RegistryUnavailable):
        store.resolve(named("a"), ALL)


def test_what_was_replaced_here_does_not_come_back_in_an_outage(
    store: Resolver, registry: Failing
) -> None:
    operator, tenant = Tenant(), Tenant(name="acme")
    old = persona(0).digest
    for who in (operator, tenant):
        assert store.resolve(named("a"), who).digests == {"a": old}
    put(registry, "a", 2)
    store.changed("", "a", replaced=True)
    registry.down = True
    for who in (operator, tenant):
        with pytest.raises(RegistryUnavailable):
            store.resolve(named("a"), who)


def test_a_name_that_was_looked_up_before_a_change_is_not_remembered_after_it(
    store: Resolver, registry: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = registry.lookup

    def late(tenant: Tenant, names: Iterable[str]) -> dict[str, Record]:
        found = look_up(tenant, names)
        store.forget({persona(0).digest})
        return found

    monkeypatch.setattr(registry, "lookup", late)
    store.resolve(named("a"), ALL)
    registry.down = True
    monkeypatch.undo()
    with pytest.raises(RegistryUnavailable):
        store.resolve(named("a"), ALL)


def test_replaced_between_name_and_bytes_the_newer_answer_counts(
    store: Resolver, registry: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup = registry.lookup

    def slow(tenant: Tenant, names: Iterable[str]) -> dict[str, Record]:
        found = lookup(tenant, names)
        monkeypatch.setattr(registry, "lookup", lookup)
        put(registry, "a", 8)
        return found

    monkeypatch.setattr(registry, "lookup", slow)
    assert store.resolve(named("a"), ALL).digests["a"] == persona(8).digest


def test_replaced_again_and_again_the_name_is_never_gone(
    store: Resolver, registry: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookup, replacements = registry.lookup, iter((7, 8, 9))

    def slow(tenant: Tenant, names: Iterable[str]) -> dict[str, Record]:
        found = lookup(tenant, names)
        if (seed := next(replacements, None)) is not None:
            put(registry, "a", seed)
        return found

    monkeypatch.setattr(registry, "lookup", slow)
    assert store.resolve(named("a"), ALL).digests["a"] == persona(9).digest


def test_a_persona_at_a_strength_is_added_up_once(
    store: Resolver, registry: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[int] = []
    compose = Effect.compose
    monkeypatch.setattr(
        Effect, "compose", lambda parts: (composed.append(len(parts)), compose(parts))[1]
    )
    first = store.resolve(named("a"), ALL).effect
    assert store.resolve(named("a"), ALL).effect is first
    other = store.resolve(Selection((("a", 1.0),), 2.0), ALL).effect
    assert other is not None and first is not None and other.key != first.key
    assert composed == [1, 1]
    for _ in range(2):
        store.resolve(named("a", "b"), ALL)
    assert composed == [1, 1, 2, 2], "blends come in any number"
    put(registry, "a", 9)
    assert store.resolve(named("a"), ALL).effect is not first


def test_the_cache_of_effects_is_bounded_and_drops_what_was_not_used_longest() -> None:
    effects = [Effect.compose([(persona(seed), 1.0)]) for seed in range(4)]
    held = effects[0].offsets.nbytes + effects[0].layers.nbytes * 2 + 2048
    cache = EffectCache(2 * held)
    cache.put("0", 1.0, effects[0])
    cache.put("0", 1.0, effects[0])
    cache.put("1", 1.0, effects[1])
    assert cache.get("0", 1.0) is effects[0]
    cache.put("2", 1.0, effects[2])
    assert cache.get("1", 1.0) is None
    assert cache.get("0", 1.0) is effects[0]
    assert len(cache) == 2


def fetcher(contents: dict[str, bytes], asked: list[str]) -> Callable[[str], bytes]:
    def fetch(digest: str) -> bytes:
        asked.append(digest)
        return contents[digest]

    return fetch


def test_the_cache_is_bounded_and_drops_what_was_not_used_longest() -> None:
    personas = [persona(seed) for seed in range(6)]
    asked: list[str] = []
    cache = PersonaCache(4 * 3000, fetcher({p.digest: p.to_bytes() for p in personas}, asked))
    for p in personas[:4]:
        cache.get(p.digest)
    cache.get(personas[0].digest)
    cache.get(personas[4].digest)
    assert cache.held_bytes <= cache.most_bytes
    assert personas[0].digest in cache
    assert personas[1].digest not in cache
    assert len(asked) == 5
    small = PersonaCache(100, fetcher({personas[0].digest: personas[0].to_bytes()}, asked))
    assert small.get(personas[0].digest) == personas[0]
    assert small.held_bytes == 0


def test_the_cache_keeps_no_texts_of_a_file() -> None:
    """They may be megabytes, and its bound counts offsets."""
    long = dataclasses.replace(
        persona(1), name="n" * 9999, base_model="b" * 9999, method="m" * 9999,
        description="d" * 9999, fit={"f": "f" * 9999}, digest="",
    )  # fmt: skip
    kept = PersonaCache(1 << 20, lambda _: long.to_bytes()).get(long.digest)
    assert kept == long
    assert len(json.dumps(kept.header)) < 300


def test_what_is_deleted_while_it_comes_is_given_to_who_waits_and_not_kept() -> None:
    one = persona(1)

    def fetch(digest: str) -> bytes:
        cache.drop({digest})
        return one.to_bytes()

    cache = PersonaCache(1 << 20, fetch)
    assert cache.get(one.digest).digest == one.digest
    assert one.digest not in cache
    cache._fetch = lambda _: one.to_bytes()
    cache.get(one.digest)
    assert one.digest in cache


def test_the_sum_of_a_persona_that_was_deleted_meanwhile_is_not_kept(
    store: Resolver, registry: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = persona(5)
    registry.put(ALL, "e", content, content.to_bytes())
    compose = Effect.compose

    def deleting(parts: list[tuple[Persona, float]]) -> Effect:
        registry.delete(ALL, "e")
        store.forget({content.digest})
        return compose(parts)

    monkeypatch.setattr(Effect, "compose", deleting)
    assert store.resolve(named("e"), ALL).effect is not None
    assert content.digest not in store.held()


def test_a_change_of_another_name_takes_nobody_out_of_memory(
    store: Resolver, registry: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.resolve(named("a"), ALL)
    looked = registry.lookup

    def busy(tenant: Tenant, names: Iterable[str]) -> dict[str, Record]:
        found = looked(tenant, names)
        store.changed("", "other", replaced=False)
        return found

    monkeypatch.setattr(registry, "lookup", busy)
    store.resolve(named("a"), ALL)
    registry.down = True
    monkeypatch.undo()
    assert store.resolve(named("a"), ALL).effect is not None


def test_one_fetch_serves_all_who_wait_and_so_does_its_failure() -> None:
    wanted = persona(1)
    asked: list[str] = []
    here, go = threading.Event(), threading.Event()

    def fetch(digest: str) -> bytes:
        asked.append(digest)
        here.set()
        assert go.wait(10)
        if len(asked) == 1:
            raise PersonaCorrupt("broken")
        return wanted.to_bytes()

    cache = PersonaCache(1 << 20, fetch)

    def together() -> list[Persona | BaseException]:
        here.clear()
        go.clear()
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(cache.get, wanted.digest) for _ in range(8)]
            assert here.wait(10)
            time.sleep(0.1)  # the others arrive at the cache
            go.set()
            return [future.exception() or future.result() for future in waiting]

    assert all(isinstance(answer, PersonaCorrupt) for answer in together())
    assert together() == [wanted] * 8
    assert len(asked) == 2
