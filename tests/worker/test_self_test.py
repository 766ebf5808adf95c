"""The start-up self-test: which batches it runs, what it catches, and that it leaves the bank alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.personas import random_persona
from vllm_palign import PalignStartupError
from vllm_palign.effect import Effect
from vllm_palign.worker.bank import BankShape, OffsetBank
from vllm_palign.worker.ops import add_offsets
from vllm_palign.worker.self_test import self_test

LAYERS, HEADS, HEAD_DIM = 2, 2, 4


class Runner:
    """A model that adds up its layers' inputs. ``lost(tokens, layer)`` says where the op is missing."""

    def __init__(self, captured: list[int], lost: Any = lambda tokens, layer: False) -> None:
        self.vllm_config = SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_batched_tokens=64, max_num_seqs=4),
            compilation_config=SimpleNamespace(cudagraph_capture_sizes=captured),
        )
        shape = BankShape(tuple(range(LAYERS)), HEADS, 0, HEAD_DIM, slots=4, tokens=64)
        self.bank = OffsetBank(shape, torch.float32, torch.device("cpu"))
        self.lost = lost
        self.ran: list[tuple[int, bool]] = []

    def _dummy_run(
        self, tokens: int, force_attention: bool = False, uniform_decode: bool = False
    ) -> tuple[torch.Tensor, None]:
        self.ran.append((tokens, uniform_decode))
        hidden = torch.zeros(tokens, HEADS * HEAD_DIM)
        for layer in range(LAYERS):
            if not self.lost(tokens, layer):
                hidden = add_offsets(hidden, self.bank.token_slots, self.bank.rows[layer])
        return hidden, None


class RunnerV2(Runner):
    model_state = None


@pytest.mark.parametrize(
    ("runner", "captured", "batches"),
    [
        (Runner, [], [(8, False)]),
        (RunnerV2, [1, 2, 4, 16, 32, 128], [(1, False), (8, False), (32, False)]),
        # V1 captures decodes apart, of as many requests as it runs at once.
        (
            Runner,
            [1, 2, 4, 16, 32],
            [(1, False), (8, False), (32, False), (1, True), (4, True)],
        ),
    ],
)
def test_the_usual_batch_and_the_smallest_and_largest_captured_ones_are_run(
    runner: type[Runner], captured: list[int], batches: list[tuple[int, bool]]
) -> None:
    tested = runner(captured)
    self_test(tested, tested.bank)
    assert list(dict.fromkeys(tested.ran)) == batches
    assert len(tested.ran) == len(batches) * (1 + LAYERS)


def test_one_layer_lost_in_one_size_of_graph_is_found_and_named() -> None:
    runner = RunnerV2([1, 16, 32], lost=lambda tokens, layer: tokens == 32 and layer == 1)
    with pytest.raises(PalignStartupError) as refused:
        self_test(runner, runner.bank)
    assert "layers [1] of 2 armed do not change" in refused.value.message
    assert "(batches of [32] tokens)" in refused.value.message


def test_a_bank_that_serves_is_left_as_it_was() -> None:
    runner = Runner([])
    bank = runner.bank
    model = {"num_layers": LAYERS, "num_heads": HEADS, "head_dim": HEAD_DIM}
    bank.admit("alice", Effect.compose([(random_persona(1, **model, steered=3), 1.0)]))
    starts = torch.tensor([0, 1, 2], dtype=torch.int32)
    bank.step(["plain", "alice"], starts, 2, torch.arange(2))
    before = bank.rows.clone(), bank.token_slots.clone(), bank.usage()
    assert before[0].any() and before[1].any()
    self_test(runner, bank)
    assert torch.equal(bank.rows, before[0])
    assert torch.equal(bank.token_slots, before[1])
    bank.step(["plain", "alice"], starts, 2, torch.arange(2))
    assert torch.equal(bank.token_slots, before[1])
    assert bank.usage() == before[2]
