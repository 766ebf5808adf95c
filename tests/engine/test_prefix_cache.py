"""A conversation over several turns reuses the blocks of its own persona and of no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import oracle
from tests.engine.conftest import RUNNERS, Run
from tests.engine.families import FAMILIES
from tests.engine.mixed import MixedBatch
from tests.engine.models import random_prompt
from tests.shown import Measured

BOUND = 1e-4
FAMILY = FAMILIES["llama"]
BLOCK = 32
ANSWER = 4


@pytest.mark.shows(
    "features", "prefix caching, several turns", note="three turns, a block of 32 tokens"
)
@pytest.mark.parametrize("runner", RUNNERS)
def test_each_turn_finds_its_own_blocks_and_answers_as_without_them(
    runner: str,
    engines: Run,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    batch = MixedBatch(tmp_path, checkpoint("llama"), FAMILY)
    reference = oracle.load_hf(batch.model)
    # The same words for all four: only the persona tells their blocks apart.
    turns = [batch.requests(lambda seed: random_prompt(1, length=40), prompt_distributions=False)]
    for seed in (2, 3):
        turns.append(
            [
                request
                | {
                    "prompt": request["prompt"]
                    + batch.greedy(reference, request, ANSWER)
                    + random_prompt(seed, length=20)
                }
                for request in turns[-1]
            ]
        )
    (result,) = engines(
        [
            {
                "model": str(batch.model),
                "kwargs": {"block_size": BLOCK, "max_model_len": 128},
                "personas": batch.files,
                "batches": turns,
            }
        ],
        **RUNNERS[runner],
    )
    assert "error" not in result, result["error"]
    # Plain, alice, bob and a blend. Bob is steered everywhere. The others find the plain prompt at once; prompts of
    # tokens say nothing of answers in them, so alice's and the blend's are plain up to their last token.
    assert [[answer["cached"] for answer in answers] for answers in result["batches"]] == [
        [0, BLOCK, 0, BLOCK],
        [BLOCK] * 4,
        [2 * BLOCK, BLOCK, 2 * BLOCK, BLOCK],
    ]
    worst: dict[str, float] = {}
    for requests, answers in zip(turns, result["batches"], strict=True):
        for name, error in batch.errors(requests, answers, reference).items():
            better = min if name == "effect" else max
            worst[name] = better(error, worst.get(name, error))
    measured(worst)
    effect = worst.pop("effect")
    assert max(worst.values()) < BOUND
    assert effect > 1000 * BOUND
