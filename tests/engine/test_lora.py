"""LoRA and persona meet in one projection: (W + BA)(x + d). vLLM never compiles LoRA on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import oracle
from tests.adapters import RANK, write_adapter
from tests.engine.conftest import Run
from tests.engine.families import FAMILIES
from tests.engine.models import random_persona, random_prompt
from tests.shown import Measured

BOUND = 1e-4
FAMILY = FAMILIES["llama"]


def with_adapter(path: Path, changes: dict[str, torch.Tensor]) -> Any:
    model = oracle.load_hf(path)
    with torch.no_grad():
        for name, change in changes.items():
            model.get_submodule(name).weight.add_(change)
    return model


@pytest.mark.shows(
    "features", "LoRA", note="(W + BA)(x + d): adapter, persona, both and neither in one batch"
)
def test_lora_and_persona_together_and_apart_in_one_batch_equal_the_reference_method(
    engines: Run,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    path = checkpoint("llama")
    plain_model = oracle.load_hf(path)
    lora_model = with_adapter(path, write_adapter(plain_model, tmp_path / "adapter"))
    file = tmp_path / "alice.safetensors"
    persona = random_persona(file, seed=0, family=FAMILY)

    lora = {"lora": str(tmp_path / "adapter")}
    alice = {"persona": {"id": "alice", "strength": 1.3}}
    cases = {
        "both": (lora_model, {persona: 1.3}, lora | alice),
        "persona": (plain_model, {persona: 1.3}, alice),
        "lora": (lora_model, {}, lora),
        "neither": (plain_model, {}, {}),
    }
    prompts = [random_prompt(seed) for seed in range(len(cases))]
    (result,) = engines(
        [
            {
                "model": str(path),
                "kwargs": {
                    "enable_lora": True,
                    "max_lora_rank": RANK,
                    # vLLM on a CPU gives requests without an adapter the last slot's.
                    "max_loras": 2,
                },
                "personas": {"alice": str(file)},
                "batches": [
                    [
                        # vLLM's LoRA on a CPU fails on prompt log-probabilities; what the prompt
                        # became shows in the answer.
                        {
                            "prompt": prompt,
                            "max_tokens": 8,
                            "prompt_distributions": False,
                            **wish,
                        }
                        for prompt, (_, _, wish) in zip(prompts, cases.values(), strict=True)
                    ]
                ],
            }
        ]
    )
    assert "error" not in result, result["error"]
    errors = {}
    for prompt, answer, (name, (model, blend, _)) in zip(
        prompts, result["batches"][0], cases.items(), strict=True
    ):
        tokens, first = prompt + answer["tokens"], len(prompt) - 1
        with oracle.steered(model, blend, FAMILY.projection, first):
            wanted = oracle.distributions(model, tokens)[first:]
        errors[name] = oracle.error(answer["distributions"], wanted)
        if name != "neither":
            stock = oracle.distributions(plain_model, tokens)[first:]
            assert oracle.error(answer["distributions"], stock) > 1000 * BOUND
    measured(errors)
    assert max(errors.values()) < BOUND
