"""Slots and KV blocks run short: requests wait, are thrown out and come back, and stay right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests import oracle
from tests.engine.conftest import RUNNERS, Run
from tests.engine.families import FAMILIES
from tests.engine.mixed import MixedBatch
from tests.engine.models import random_persona, random_prompt
from tests.shown import Measured

BOUND = 1e-4
FAMILY = FAMILIES["llama"]


@pytest.mark.shows("features", "preemption and resume", note="four requests, four KV blocks")
@pytest.mark.parametrize("runner", RUNNERS)
def test_a_preempted_request_goes_on_with_its_persona(
    runner: str,
    engines: Run,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    batch = MixedBatch(tmp_path, checkpoint("llama"), FAMILY)
    requests = batch.requests(
        lambda seed: random_prompt(seed, length=24), max_tokens=20, prompt_distributions=False
    )
    (result,) = engines(
        [
            {
                "model": str(batch.model),
                # Each request outgrows its first block of 32 tokens; four are usable, and one is
                # vLLM's own.
                "kwargs": {
                    "block_size": 32,
                    "num_gpu_blocks_override": 5,
                    "disable_log_stats": False,
                },
                "personas": batch.files,
                "batches": [requests],
            }
        ],
        **RUNNERS[runner],
    )
    assert "error" not in result, result["error"]
    assert result["metrics"]["num_preemptions"] > 0
    errors = batch.errors(requests, result["batches"][0])
    measured(errors)
    effect = errors.pop("effect")
    assert max(errors.values()) < BOUND
    assert effect > 1000 * BOUND
    assert result["bank"][0]["requests"] == 0


@pytest.mark.shows("features", "more effects than slots", note="twelve effects, two slots")
@pytest.mark.parametrize("runner", RUNNERS)
def test_twelve_effects_share_two_slots_and_each_request_gets_its_own(
    runner: str,
    engines: Run,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    files = [tmp_path / f"p{seed}.safetensors" for seed in range(6)]
    personas = [random_persona(file, seed=seed, family=FAMILY) for seed, file in enumerate(files)]
    path = checkpoint("llama")
    wishes = [(index, strength) for strength in (1.0, -0.8) for index in range(6)]
    requests = [
        {
            "prompt": random_prompt(7),
            # Of different lengths, so that slots change hands in the middle of a neighbour.
            "max_tokens": 2 + at % 4,
            "prompt_distributions": False,
            "persona": {"id": f"p{index}", "strength": strength},
        }
        for at, (index, strength) in enumerate(wishes)
    ]
    (result,) = engines(
        [
            {
                "model": str(path),
                "kwargs": {"max_num_seqs": 2},
                "personas": {file.stem: str(file) for file in files},
                "batches": [requests],
            }
        ],
        **RUNNERS[runner],
    )
    assert "error" not in result, result["error"]
    model = oracle.load_hf(path)
    errors = []
    for request, answer, (index, strength) in zip(
        requests, result["batches"][0], wishes, strict=True
    ):
        prompt, tokens = request["prompt"], answer["tokens"]
        assert len(tokens) == request["max_tokens"]
        blend, start = {personas[index]: strength}, len(prompt) - 1
        with oracle.steered(model, blend, FAMILY.projection, start):
            wanted = oracle.distributions(model, prompt + tokens)[len(prompt) - 1 :]
        errors.append(oracle.error(answer["distributions"], wanted))
        assert wanted.argmax(-1).tolist() == tokens
    measured({"slots": max(errors)})
    assert max(errors) < BOUND
    (bank,) = result["bank"]
    assert bank["slots"] == 2
    assert bank["requests"] == 0
    assert bank["resident"] <= 2
    assert bank["neutral"] == 0.0
