"""The V2 model runner, which GPUs use, run through the Triton interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.engine.conftest import RUNNERS, Run
from tests.engine.families import FAMILIES
from tests.engine.models import random_persona, random_prompt
from tests.shown import Measured

BOUND = 1e-4
FAMILY = FAMILIES["llama"]
ALICE = [random_prompt(1), random_prompt(4, length=5)]
PLAIN = random_prompt(2, length=7)
BOB = random_prompt(3, length=12)


class Answers:
    def __init__(self, result: dict[str, Any], path: Path, alice: Any, bob: Any) -> None:
        self.result, self.alice, self.bob = result, alice, bob
        self.model = oracle.load_hf(path)

    def check(self, prompt: list[int], answer: dict[str, Any], blend: Any) -> float:
        """Error of the whole answer, and that its tokens are what the reference method would choose."""
        with oracle.steered(self.model, blend, FAMILY.projection, len(prompt) - 1):
            wanted = oracle.distributions(self.model, prompt + answer["tokens"])
        assert wanted[len(prompt) - 1 :].argmax(-1).tolist() == answer["tokens"]
        return oracle.error(answer["distributions"], wanted)


@pytest.fixture(scope="module")
def answers(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    folder = tmp_path_factory.mktemp("personas")
    files = {who: folder / f"{who}.safetensors" for who in ("alice", "bob")}
    alice, bob = (
        random_persona(file, seed=seed, family=FAMILY) for seed, file in enumerate(files.values())
    )
    path = checkpoint("llama")
    steered = {"persona": {"id": "alice", "strength": 1.2}}
    (result,) = engines(
        [
            {
                "model": str(path),
                "kwargs": {"max_num_seqs": 2},
                "personas": {who: str(file) for who, file in files.items()},
                "batches": [
                    # Two at a time: the third joins when the first leaves.
                    [
                        {"prompt": ALICE[0], "max_tokens": 3, **steered},
                        {"prompt": PLAIN, "max_tokens": 6},
                        {"prompt": BOB, "max_tokens": 4, "persona": "bob"},
                        {"prompt": ALICE[1], "max_tokens": 4, **steered},
                    ],
                    [{"prompt": PLAIN, "max_tokens": 4}],
                ],
            }
        ],
        **RUNNERS["v2"],
    )
    assert "error" not in result, result["error"]
    return Answers(result, path, alice, bob)


def test_it_is_the_v2_runner_that_answered(answers: Answers) -> None:
    assert answers.result["bank"][0]["runner"] == "vllm.v1.worker.cpu.model_runner.CPUModelRunner"


def test_steered_requests_of_a_mixed_batch_equal_the_reference_method(
    answers: Answers, measured: Measured
) -> None:
    first, _, bob, second = answers.result["batches"][0]
    errors = [
        answers.check(ALICE[0], first, {answers.alice: 1.2}),
        answers.check(BOB, bob, {answers.bob: 1.0}),
        answers.check(ALICE[1], second, {answers.alice: 1.2}),
    ]
    measured({"steered": max(errors)})
    assert max(errors) < BOUND


def test_a_plain_neighbour_is_answered_as_by_stock_hugging_face(
    answers: Answers, measured: Measured
) -> None:
    errors = [
        answers.check(PLAIN, answers.result["batches"][0][1], {}),
        answers.check(PLAIN, answers.result["batches"][1][0], {}),
    ]
    measured({"plain": max(errors)})
    assert max(errors) < BOUND


def test_the_bank_is_empty_when_the_requests_are_gone(answers: Answers) -> None:
    (bank,) = answers.result["bank"]
    assert bank["requests"] == 0
    assert bank["resident"] <= bank["slots"] == 2
    assert bank["neutral"] == 0.0
    # The last step had plain requests only.
    assert bank["token_slots"] == 0
