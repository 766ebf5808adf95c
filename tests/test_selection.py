"""What a client may ask for, and what the worker is given."""

from __future__ import annotations

import contextvars
import functools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.personas import random_persona
from vllm_palign import (
    PalignError,
    PalignStartupError,
    Persona,
    PersonaConflict,
    PersonaIncompatible,
    PersonaInvalid,
    PersonaNotFound,
    persona_args,
)
from vllm_palign.admission.handoff import Granted, Handoff
from vllm_palign.admission.resolver import Resolver
from vllm_palign.config.store_url import private_store
from vllm_palign.effect import Effect, block_identity, salted
from vllm_palign.registry import Registry
from vllm_palign.selection import Selection, check_salt, header_value, open_named, parse_persona
from vllm_palign.server.body import agree, parse_metadata, parse_model
from vllm_palign.shape import MAX_OFFSET, ModelShape
from vllm_palign.tenants.tenant import Tenant

SHAPE = {"num_layers": 3, "num_heads": 4, "head_dim": 8}
MODEL = ModelShape(**SHAPE, attention_layers=frozenset(range(3)), largest=3e38)


PERSONAS = {
    name: random_persona(seed, **SHAPE, steered=5, name=name)
    for seed, name in enumerate(("alice", "bob", "carol"))
}


@functools.cache
def store() -> Resolver:
    return store_of(PERSONAS, MODEL)


def store_of(personas: dict[str, Persona], shape: ModelShape) -> Resolver:
    registry = Registry(private_store())
    registry.migrate()
    for name, persona in personas.items():
        registry.put(Tenant(), name, persona, persona.to_bytes())
    return Resolver(registry, shape, max_strength=3.0, cache_bytes=1 << 20)


@pytest.mark.parametrize(
    ("value", "parts", "strength"),
    [
        ("alice", (("alice", 1.0),), 1.0),
        ({"id": "alice", "strength": 1.5}, (("alice", 1.0),), 1.5),
        ({"id": "alice", "strength": "-1.5e0"}, (("alice", 1.0),), -1.5),
        ({"mix": {"bob": 0.3, "alice": 0.7}}, (("alice", 0.7), ("bob", 0.3)), 1.0),
        ({"mix": {"alice": 1}, "strength": 2}, (("alice", 1.0),), 2.0),
        ({"mix": {"alice": 1, "bob": None}}, (("alice", 1.0),), 1.0),
        ({"id": "alice", "strength": None}, (("alice", 1.0),), 1.0),
        ({"mix": {"alice": 1}, "id": None, "scope": None}, (("alice", 1.0),), 1.0),
    ],
)
def test_the_three_forms_are_understood(value: Any, parts: Any, strength: float) -> None:
    assert parse_persona(value) == Selection(parts, strength)


@pytest.mark.parametrize(
    "value",
    [
        "", " alice", "a/b", "../a", "ü", "a" * 129, "-a", ".a", "alice\n", "аlice",  # Cyrillic a
        True, False, 0, 1, 1.5, [], ["alice"], {}, {"id": None}, {"id": "alice", "mix": {"alice": 1}},
        {"mix": {}}, {"mix": []}, {"mix": {f"p{i}": 0.1 for i in range(9)}}, {"mix": {"alice": None}},
        {"mix": {"": 1}}, {"id": "alice", "power": 2}, {"name": "alice"},
        *({"id": "alice", "strength": bad} for bad in (
            math.nan, math.inf, -math.inf, True, False, "", "x", "nan", "inf", "1_0", " 1", "0x1",
            "١", [], {}, 10**400, "1e999", "9" * 65,
        )),
    ],
    ids=repr,
)  # fmt: skip
def test_anything_else_is_persona_invalid(value: Any) -> None:
    with pytest.raises(PersonaInvalid) as refused:
        parse_persona(value)
    assert refused.value.status == 400
    assert len(refused.value.message) < 500


def test_null_asks_for_nobody() -> None:
    assert parse_persona(None) is None
    assert parse_metadata(None) is None
    assert parse_metadata({"persona": None}) is None


def test_metadata_names_persona_and_strength() -> None:
    assert parse_metadata(
        {"persona": "alice", "persona_strength": "1.5", "user": "7"}
    ) == Selection((("alice", 1.0),), 1.5)
    with pytest.raises(PersonaInvalid, match="name the persona"):
        parse_metadata({"persona_strength": "1.5"})


def test_a_model_suffix_counts_only_after_a_served_model() -> None:
    served = ["base", "org/model", "odd@name"]
    assert parse_model("base@alice", served) == ("base", Selection((("alice", 1.0),)))
    assert parse_model("odd@name@alice", served) == ("odd@name", Selection((("alice", 1.0),)))
    assert parse_model("odd@name", served) is None
    assert parse_model("base", served) is None
    assert parse_model("other@alice", served) is None
    for suffix in ("", " ", "a b", "ü", "a/b"):
        with pytest.raises(PersonaInvalid):
            parse_model(f"base@{suffix}", served)


def test_places_that_disagree_are_a_conflict() -> None:
    alice = Selection((("alice", 1.0),), scope="answers")
    assert agree({"persona": alice, "model": alice}) == alice
    assert agree({}) is None
    for change in ({"parts": (("bob", 1.0),)}, {"strength": 2.0}, {"scope": "all"}):
        with pytest.raises(PersonaConflict):
            agree({"persona": alice, "model": replace(alice, **change)})


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        ({"id": "alice", "strength": 3}, True),
        ({"id": "alice", "strength": -3}, True),
        ({"id": "alice", "strength": 3.0001}, False),
        ({"mix": {"alice": 1.5, "bob": -1.5}}, True),
        ({"mix": {"alice": 1.5, "bob": -1.6}}, False),
        ({"mix": {"alice": 0.1}, "strength": 3.1}, False),
        ({"mix": {"alice": 2}, "strength": 2}, False),
        ({"mix": {"alice": 1e308, "bob": 1e308}}, False),
        ({"mix": {"alice": 1e308, "bob": -1e308}, "strength": 0}, True),
        ({"id": "alice", "strength": 1e308}, False),
    ],
)
def test_strength_is_bounded_and_never_clamped(value: Any, allowed: bool) -> None:
    selection = parse_persona(value)
    assert selection is not None
    if allowed:
        store().resolve(selection, Tenant())
    else:
        with pytest.raises(PersonaInvalid, match="at most 3"):
            store().resolve(selection, Tenant())


def test_a_blend_exactly_at_the_bound_is_not_beyond_it() -> None:
    selection = parse_persona({"mix": {f"p{n}": 0.2 for n in range(5)}, "strength": 3.0})
    assert selection is not None and selection.magnitude == 3.0


BOUNDED = {
    "mild": replace(PERSONAS["alice"], fit={"max_strength": 1.5}, digest=""),
    "free": PERSONAS["bob"],
    "loud": replace(PERSONAS["carol"], fit={"max_strength": 5}, digest=""),
}


@pytest.mark.parametrize(
    ("value", "allowed"),
    [
        ("mild", ""),
        ({"id": "mild", "strength": -1.5}, ""),
        ({"id": "mild", "strength": 1.6}, "amounts to 1.6 for persona 'mild', whose file allows at most 1.5"),
        ({"id": "mild", "strength": -1.6}, "at most 1.5"),
        ({"id": "loud", "strength": 3}, ""),
        ({"id": "loud", "strength": 3.1}, "this server allows at most 3 "),
        ({"mix": {"mild": 0.5, "free": 0.5}, "strength": 3}, ""),
        ({"mix": {"mild": 0.75, "free": 0.25}, "strength": 2.5}, "amounts to 1.875 for persona 'mild'"),
        ({"mix": {"mild": 0.1, "free": 1.4}, "strength": 2}, ""),
        ({"mix": {"mild": 0.1, "free": 1.5}, "strength": 2}, "this server allows at most 3 "),
        # The same content under another name is the same persona.
        ({"mix": {"mild": 1, "again": 0.5}}, ""),
        ({"mix": {"mild": 1, "again": 0.6}}, "amounts to 1.6 for persona 'mild'"),
        ({"mix": {"mild": 1, "again": -0.6}}, "amounts to 1.6 for persona 'mild'"),
    ],
    ids=str,
)  # fmt: skip
def test_a_file_bounds_its_own_part_and_the_server_the_whole(value: Any, allowed: str) -> None:
    personas = store_of({**BOUNDED, "again": BOUNDED["mild"]}, MODEL)
    selection = parse_persona(value)
    assert selection is not None
    for _ in range(2):  # read, and from memory
        if not allowed:
            assert personas.resolve(selection, Tenant()).effect is not None
            continue
        with pytest.raises(PersonaInvalid) as refused:
            personas.resolve(selection, Tenant())
        assert allowed in refused.value.message
        assert refused.value.param == "persona.strength"
        who = "--palign-max-strength" if "this server" in allowed else "fit.max_strength"
        assert who in refused.value.message


def test_an_unknown_persona_is_404() -> None:
    with pytest.raises(PersonaNotFound) as refused:
        store().resolve(Selection((("nobody", 1.0),)), Tenant())
    assert refused.value.status == 404
    assert refused.value.to_openai()["error"]["code"] == "persona_not_found"


def resolve(value: Any) -> Effect | None:
    selection = parse_persona(value)
    assert selection is not None
    return store().resolve(selection, Tenant()).effect


def test_the_effect_is_the_sum_of_strength_times_alpha_times_offsets() -> None:
    effect = resolve({"mix": {"alice": 0.7, "bob": -0.3}, "strength": 1.5})
    assert effect is not None
    wanted = np.zeros((3, 4, 8))
    for name, weight in (("alice", 0.7), ("bob", -0.3)):
        persona = PERSONAS[name]
        for layer, head, offset in zip(persona.layers, persona.heads, persona.offsets, strict=True):
            wanted[layer, head] += 1.5 * weight * persona.alpha * offset.astype(np.float64)
    got = np.zeros_like(wanted)
    got[effect.layers, effect.heads] = effect.offsets
    np.testing.assert_array_equal(got.astype(np.float32), wanted.astype(np.float32))


def test_identity_is_content_strength_and_weights_and_nothing_else() -> None:
    alice = resolve("alice")
    assert alice is not None
    same = [
        {"mix": {"alice": 1.0}},
        {"mix": {"alice": 2.0}, "strength": 0.5},
        {"mix": {"alice": 1, "bob": 0}},
    ]
    assert {resolve(value).key for value in same} == {alice.key}  # type: ignore[union-attr]
    others = [
        "bob",
        {"id": "alice", "strength": 1.0000001},
        {"id": "alice", "strength": -1},
        {"mix": {"alice": 0.5, "bob": 0.5}},
    ]
    keys = {resolve(value).key for value in others}  # type: ignore[union-attr]
    assert len(keys) == len(others)
    assert alice.key not in keys


def test_two_names_for_the_same_bytes_are_one_persona() -> None:
    personas = store_of({**PERSONAS, "alias": PERSONAS["alice"]}, MODEL)
    both = personas.resolve(Selection((("alias", 0.5), ("alice", 0.5))), Tenant()).effect
    one = resolve("alice")
    assert both is not None and one is not None
    assert both.key == one.key


def test_strength_zero_is_no_steering_at_all() -> None:
    assert resolve({"id": "alice", "strength": 0}) is None
    assert resolve({"id": "alice", "strength": -0.0}) is None
    assert resolve({"mix": {"alice": 0, "bob": 0}}) is None


def test_a_stamp_survives_the_way_to_the_worker_and_tampering_is_seen() -> None:
    effect = resolve("alice")
    assert effect is not None
    packed = effect.pack()
    assert Effect.unpack(packed).key == effect.key
    np.testing.assert_array_equal(Effect.unpack(packed).offsets, effect.offsets)
    broken = bytearray(packed["offsets"])
    broken[3] ^= 1
    for wrong in (
        {**packed, "offsets": bytes(broken)},
        {**packed, "parts": [["0" * 64, 1.0]]},
        "alice",
        None,
        {},
    ):
        with pytest.raises(PersonaInvalid):
            Effect.unpack(wrong)


def test_only_this_process_can_hand_over_and_only_in_the_requests_own_context() -> None:
    handoff = Handoff()
    for effect in (resolve("alice"), None):
        granted = Granted(effect, "all", "acme")
        assert handoff.take(handoff.put(granted)) is granted
    forged = json.dumps({"token": "0" * 32, "key": ""})
    for foreign in (forged, Handoff().put(granted), json.dumps({"token": None})):
        with pytest.raises(PersonaInvalid, match="reserved"):
            handoff.take(foreign)
    for other in ("alice", 1, None, "{", json.dumps(["x"])):
        assert handoff.take(other) is None
    handed = handoff.put(Granted(resolve("alice"), "all", ""))
    handoff.put(Granted(resolve("bob"), "all", ""))
    with pytest.raises(PalignStartupError, match="without the offsets"):
        handoff.take(handed)
    with pytest.raises(PalignStartupError, match="without the offsets"):
        contextvars.Context().run(handoff.take, handed)


def test_salts_differ_by_persona_and_by_client_salt_and_clients_cannot_write_them() -> None:
    salts = {
        salted(client, key, scope)
        for client in (None, "a", "b")
        for key in ("", "k1", "k2")
        for scope in ("", "acme", "globex")
    }
    assert len(salts) == 27
    assert all(len(salt) <= 128 and not set(salt) & set("@/\\\0") for salt in salts)
    with pytest.raises(PersonaInvalid):
        check_salt(salted(None, "k1"))
    check_salt("a client's own")
    check_salt(None)


def test_a_block_is_the_plain_models_before_the_first_steered_token_and_its_requests_own_after() -> (
    None
):
    effect, other = resolve("alice"), resolve("bob")
    assert effect is not None and other is not None

    def identity(start: int, end: int, of: Effect = effect, kv_scope: str = "") -> str | None:
        return block_identity(of.pack(scope="answers", start=start, kv_scope=kv_scope), end)

    # Blocks of 16: [0, 16) is plain for a start at 16, and not for one at 15.
    assert identity(16, 16) is None
    assert identity(15, 16) is not None
    told_apart = [
        identity(15, 16), identity(14, 16), identity(15, 16, other), identity(15, 16, kv_scope="acme"),
    ]  # fmt: skip
    assert len(set(told_apart)) == 4
    assert identity(15, 32) == identity(15, 16)
    assert identity(0, 16) is None, "the salt says it from the first token on"
    for wrong in (-1, True, None, "3", 2.0):
        with pytest.raises(PersonaInvalid, match="index"):
            block_identity({**effect.pack(), "start": wrong}, 16)


def test_the_header_names_digest_and_strength_and_a_blend_its_parts() -> None:
    digests = {"alice": "a" * 64, "bob": "b" * 64}
    alone, blend = Selection((("alice", 1.0),), 1.5), Selection((("alice", 0.7), ("bob", 0.3)))
    assert (
        header_value(alone.with_default("answers"), digests)
        == f"alice@{'a' * 12};strength=1.5;scope=answers"
    )
    assert (
        header_value(blend.with_default("all"), digests)
        == f"alice@{'a' * 12}*0.7+bob@{'b' * 12}*0.3;strength=1.0;scope=all"
    )


def test_persona_args_takes_what_the_body_field_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another test of this process may have imported vllm.
    monkeypatch.setenv("VLLM_PLUGINS", "palign")
    for value in ("alice", {"id": "alice", "strength": 2}, {"mix": {"alice": 0.7, "bob": 0.3}}):
        assert open_named(persona_args(value)["palign"]) == parse_persona(value)
    assert open_named(persona_args("alice", strength=1.5)["palign"]).strength == 1.5
    assert (
        open_named(persona_args({"id": "alice", "strength": None}, strength=2)["palign"]).strength
        == 2
    )
    assert open_named(persona_args("alice", scope="all")["palign"]).scope == "all"
    assert open_named(persona_args("alice")["palign"]).scope is None
    for twice in ({"strength": 2}, {"scope": "answers"}):
        with pytest.raises(PersonaConflict):
            persona_args({"id": "alice", "strength": 1, "scope": "all"}, **twice)
    with pytest.raises(PersonaInvalid, match="answers"):
        persona_args("alice", scope="prompt")
    with pytest.raises(PersonaInvalid):
        persona_args("no such id!")


def test_offsets_beyond_the_models_dtype_are_refused() -> None:
    half = ModelShape(**SHAPE, attention_layers=frozenset(range(3)), largest=65504.0)
    loud = random_persona(0, **SHAPE, scale=600.0)
    assert MAX_OFFSET / 3 < loud.peak < MAX_OFFSET
    personas = store_of({"loud": loud}, half)
    personas.max_strength = 1000.0
    personas.resolve(Selection((("loud", 1.0),)), Tenant())
    with pytest.raises(PalignError, match="65504"):
        personas.resolve(Selection((("loud", 1.0),), 100.0), Tenant())


def test_a_file_cannot_bring_the_strength_that_a_request_may_not_ask_for() -> None:
    """|alpha x offset| is bounded, whichever of the two is large."""
    for loud in (
        random_persona(0, **SHAPE, alpha=1e30),
        random_persona(0, **SHAPE, scale=1e30),
        random_persona(0, **SHAPE, alpha=-100 * MAX_OFFSET),
    ):
        with pytest.raises(PersonaIncompatible, match="wanted at most 10000") as refused:
            MODEL.check(loud, "loud")
        assert f"{loud.peak:g}" in refused.value.message
        # Also where another server, or an earlier release, has let it into the registry.
        with pytest.raises(PersonaIncompatible, match="persona 'loud' is too strong"):
            store_of({"loud": loud}, MODEL).resolve(Selection((("loud", 1.0),)), Tenant())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "mix", "strength", "alice", "x"]) | st.text(max_size=8),
            inner,
            max_size=9,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(json_values)
def test_no_value_gets_anything_but_a_selection_or_a_4xx(value: Any) -> None:
    for parse in (parse_persona, parse_metadata, lambda model: parse_model(model, ["base"])):
        try:
            parse(value)
        except PalignError as error:
            assert error.status in (400, 404)
            json.dumps(error.to_openai()).encode()
