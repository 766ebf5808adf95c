"""Slots: every token gets its own request's offsets, whatever comes and goes, and nothing leaks. ``places``
is tested here too: it says where a rank's offsets go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.personas import random_persona
from vllm_palign.effect import Effect
from vllm_palign.worker.bank import BankShape, OffsetBank
from vllm_palign.worker.ops import add_offsets

LAYERS, HEADS, HEAD_DIM, SLOTS, TOKENS = 3, 4, 2, 4, 20
MODEL = {"num_layers": LAYERS, "num_heads": HEADS, "head_dim": HEAD_DIM}
STAMPS = [
    Effect.compose([(random_persona(seed, **MODEL, steered=5), scale)])
    for seed in range(4)
    for scale in (1.0, -0.5)
]


def bank(
    first_head: int = 0, num_heads: int = HEADS, layers: tuple[int, ...] = (0, 1, 2)
) -> OffsetBank:
    shape = BankShape(layers, num_heads, first_head, HEAD_DIM, SLOTS, TOKENS)
    return OffsetBank(shape, torch.float32, torch.device("cpu"))


def dense(effect: Effect | None) -> np.ndarray:
    """What ``effect`` adds, [L, H, D]."""
    rows = np.zeros((LAYERS, HEADS, HEAD_DIM), np.float32)
    if effect is not None:
        rows[effect.layers, effect.heads] = effect.offsets
    return rows


def run(
    of: OffsetBank,
    batch: list[tuple[str, int]],
    seats: torch.Tensor | None = None,
    done: dict[str, int] | None = None,
) -> None:
    """One step with (request, number of tokens) in this order, of requests that have ``done`` some."""
    starts = torch.tensor(np.cumsum([0, *(count for _, count in batch)]), dtype=torch.int32)
    before = [(done or {}).get(name, 0) for name, _ in batch]
    indices = [torch.arange(at, at + count) for at, (_, count) in zip(before, batch, strict=True)]
    # vLLM's buffer of positions is longer than a step, and holds anything behind.
    positions = torch.cat([*indices, torch.full((TOKENS,), 1 << 40)])
    of.step([name for name, _ in batch], starts, int(starts[-1]), positions, seats)


def effect(of: OffsetBank, layer: int, tokens: int = TOKENS) -> np.ndarray:
    zeros = torch.zeros(tokens, of.shape.num_heads * HEAD_DIM)
    added = add_offsets(zeros, of.token_slots, of.rows[layer])
    return added.reshape(tokens, of.shape.num_heads, HEAD_DIM).numpy()


def check(
    of: OffsetBank,
    batch: list[tuple[str, int]],
    running: dict[str, Effect | None],
    done: dict[str, int] | None = None,
    firsts: dict[str, int] | None = None,
) -> None:
    for layer in range(LAYERS):
        got, at = effect(of, layer), 0
        for name, count in batch:
            ahead = (firsts or {}).get(name, 0) - (done or {}).get(name, 0)
            for token in range(count):
                wanted = dense(running[name] if token >= ahead else None)[layer]
                np.testing.assert_array_equal(got[at + token], wanted)
            at += count
        assert not got[at:].any(), "padding after the last token must stay neutral"


def test_each_token_gets_its_requests_offsets_and_padding_none() -> None:
    one = bank()
    one.admit("a", STAMPS[0])
    one.admit("b", STAMPS[2])
    batch = [("a", 3), ("plain", 2), ("b", 1), ("a2", 4)]
    one.admit("a2", STAMPS[1])
    run(one, batch)
    check(one, batch, {"a": STAMPS[0], "plain": None, "b": STAMPS[2], "a2": STAMPS[1]})


def test_a_rank_takes_only_its_own_heads_and_layers() -> None:
    part = bank(first_head=2, num_heads=2, layers=(1, 2))
    part.admit("a", STAMPS[0])
    run(part, [("a", 2)])
    for index, layer in enumerate((1, 2)):
        np.testing.assert_array_equal(effect(part, index)[0], dense(STAMPS[0])[layer, 2:4])


def test_requests_with_the_same_effect_share_a_row() -> None:
    shared = bank()
    for name in "abc":
        shared.admit(name, STAMPS[0])
    run(shared, [("a", 1), ("b", 1), ("c", 1)])
    assert shared.num_resident == 1


def test_a_step_without_steering_leaves_every_token_neutral() -> None:
    used = bank()
    used.admit("a", STAMPS[0])
    run(used, [("a", 9)])
    run(used, [("plain", 5)])
    assert not used.token_slots.any()


def test_rows_are_allocated_in_the_models_dtype_with_a_neutral_one() -> None:
    shape = BankShape((0, 1, 2), HEADS, 0, HEAD_DIM, SLOTS, TOKENS)
    half = OffsetBank(shape, torch.bfloat16, torch.device("cpu"))
    assert half.rows.shape == (LAYERS, SLOTS + 1, HEADS * HEAD_DIM)
    assert half.rows.dtype == torch.bfloat16


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_sequence_of_requests_is_served_right_and_nothing_leaks(data: st.DataObject) -> None:
    """Arrivals, steps over any part of them in any order, preemption, aborts, ids that come back; prompts in
    chunks of any length, one token among them, steered from any token on."""
    used = bank()
    alive: dict[str, Effect | None] = {}
    done: dict[str, int] = {}
    firsts: dict[str, int] = {}
    addresses = used.rows.data_ptr(), used.token_slots.data_ptr()
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["arrive", "arrive", "step", "step", "step", "end"]))
        if action == "arrive":
            name = data.draw(st.sampled_from("abcdefgh"))
            effect = data.draw(st.none() | st.sampled_from(STAMPS))
            used.forget(name)
            alive[name], done[name], firsts[name] = effect, 0, data.draw(st.integers(0, 6))
            if effect is not None:
                used.admit(name, effect, firsts[name])
        elif action == "end" and alive:
            name = data.draw(st.sampled_from(sorted(alive)))
            used.forget(name)
            del alive[name]
        elif alive:
            names = data.draw(
                st.lists(st.sampled_from(sorted(alive)), unique=True, min_size=1, max_size=SLOTS)
            )
            batch = [(name, data.draw(st.sampled_from([1, 1, 1, 2, 5]))) for name in names]
            if data.draw(st.integers(0, 9)) == 0:
                done[names[0]] = 0  # preempted, and resumed from its first token
            run(used, batch, None, done)
            check(used, batch, alive, done, firsts)
            done |= {name: done[name] + count for name, count in batch}
    assert used.num_requests == sum(effect is not None for effect in alive.values())
    assert used.num_resident <= SLOTS
    assert (used.rows.data_ptr(), used.token_slots.data_ptr()) == addresses
    assert not used.rows[:, 0].any()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_same_where_the_runner_keeps_a_requests_index(data: st.DataObject) -> None:
    """A running request has one of as many indices as there are rows; preempted ones leave and come back."""
    used = bank()
    alive: dict[str, Effect | None] = {}
    done: dict[str, int] = {}
    firsts: dict[str, int] = {}
    seats: dict[str, int] = {}
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["arrive", "arrive", "step", "step", "step", "end"]))
        if action == "arrive" and len(seats) < SLOTS:
            name = data.draw(st.sampled_from(sorted(set("abcdefgh") - set(seats))))
            alive[name] = data.draw(st.none() | st.sampled_from(STAMPS))
            seats[name] = data.draw(st.sampled_from(sorted(set(range(SLOTS)) - {*seats.values()})))
            used.forget(name)
            done[name], firsts[name] = 0, data.draw(st.integers(0, 6))
            if alive[name] is not None:
                used.admit(name, alive[name], firsts[name])
                used.seat(name, seats[name])
        elif action == "end" and seats:
            name = data.draw(st.sampled_from(sorted(seats)))
            used.forget(name)
            del alive[name], seats[name]
        elif seats:
            names = data.draw(st.lists(st.sampled_from(sorted(seats)), unique=True, min_size=1))
            batch = [(name, data.draw(st.sampled_from([1, 1, 1, 2, 5]))) for name in names]
            run(used, batch, torch.tensor([seats[name] for name in names]), done)
            check(used, batch, alive, done, firsts)
            done |= {name: done[name] + count for name, count in batch}
    assert used.num_requests == sum(effect is not None for effect in alive.values())
    assert used.num_resident <= SLOTS
    assert not used.rows[:, 0].any()


def test_what_borrows_the_bank_leaves_it_as_it_was_whoever_is_being_served() -> None:
    used = bank()
    batch = [("a", 1), ("plain", 1), ("b", 1)]
    used.admit("a", STAMPS[0])
    used.admit("b", STAMPS[2])
    run(used, batch)
    before = used.usage()
    with used.borrowed():
        used.rows[:, 1] = 7.0
        used.token_slots[:] = 1
    alive = {"a": STAMPS[0], "plain": None, "b": STAMPS[2]}
    check(used, batch, alive)
    run(used, batch)
    check(used, batch, alive)
    used.admit("c", STAMPS[0])
    run(used, [*batch, ("c", 2)])
    check(used, [*batch, ("c", 2)], alive | {"c": STAMPS[0]})
    assert used.usage() == before


def test_on_an_accelerator_nothing_comes_back_to_the_host_and_all_that_meets_is_there() -> None:
    """Meta tensors have no numbers to wait for and do not mix with the host's."""
    device = torch.device("meta")
    shape = BankShape((0, 1, 2), HEADS, 0, HEAD_DIM, SLOTS, TOKENS)
    for seats in (None, torch.arange(2, device=device)):
        far = OffsetBank(shape, torch.bfloat16, device)
        far.admit("a", STAMPS[0])
        if seats is not None:
            far.seat("a", 1)
        positions = torch.arange(9, device=device)
        for tokens in (2, 9):
            starts = torch.arange(3, dtype=torch.int32, device=device)
            far.step(["b", "a"], starts, tokens, positions, seats)
        with far.borrowed():
            pass
        assert far.usage() == {"total": SLOTS, "in_use": 1, "resident": 1}


class Calls(TorchDispatchMode):
    """Counts what is asked of the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("indexed", [True, False])
def test_a_step_with_one_change_costs_the_same_however_many_requests_and_layers(
    indexed: bool,
) -> None:
    costs = set()
    for layers, slots in ((1, 8), (3, 8), (3, 512)):
        shape = BankShape(tuple(range(layers)), HEADS, 0, HEAD_DIM, slots, 8 * slots)
        used = OffsetBank(shape, torch.float32, torch.device("cpu"))
        names = [f"request-{seat}" for seat in range(slots)]
        for seat, name in enumerate(names):
            used.admit(name, STAMPS[seat % 4])
            if indexed:
                used.seat(name, seat)
        seats = torch.arange(slots) if indexed else None
        starts = torch.arange(slots + 1, dtype=torch.int32)
        used.step(names, starts, slots, torch.arange(slots), seats)
        used.forget(names[3])
        names[3] = "another"
        used.admit("another", STAMPS[1])
        if indexed:
            used.seat("another", 3)
        positions = torch.arange(slots)
        with Calls() as calls:
            used.step(names, starts, slots, positions, seats)
        costs.add(calls.count)
    assert len(costs) == 1, costs
    assert costs.pop() <= 8


@pytest.mark.parametrize("tokens", [1, 5, TOKENS])
def test_the_op_reads_as_many_slots_as_there_are_tokens(tokens: int) -> None:
    used = bank()
    used.admit("a", STAMPS[0])
    run(used, [("a", tokens)])
    assert effect(used, 0, tokens).shape == (tokens, HEADS, HEAD_DIM)
