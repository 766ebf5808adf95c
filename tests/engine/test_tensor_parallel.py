"""Each tensor-parallel rank adds the offsets of its own heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import oracle
from tests.engine.conftest import Run
from tests.engine.families import FAMILIES
from tests.engine.models import random_persona, random_prompt
from tests.shown import Measured

BOUND = 1e-4
FAMILY = FAMILIES["llama"]


@pytest.mark.shows("features", "tensor parallel 2", note="also against one rank")
def test_two_ranks_answer_as_one_and_as_the_reference_method(
    engines: Run,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    file = tmp_path / "alice.safetensors"
    persona = random_persona(file, seed=0, family=FAMILY, steered=6)
    assert set((persona.heads // 2).tolist()) == {0, 1}, "heads on both ranks"
    path = checkpoint("llama")
    prompts = [random_prompt(1), random_prompt(2, length=7)]
    batch = [{"prompt": prompts[0], "persona": "alice"}, {"prompt": prompts[1]}]
    results = engines(
        [
            {
                "model": str(path),
                "kwargs": {"tensor_parallel_size": ranks},
                "personas": {"alice": str(file)},
                "batches": [batch],
            }
            for ranks in (2, 1)
        ]
    )
    for result in results:
        assert "error" not in result, result["error"]
    two, one = results
    assert [bank["heads"] for bank in two["bank"]] == [[0, 2], [2, 2]]
    assert [bank["requests"] for bank in two["bank"]] == [0, 0]

    model = oracle.load_hf(path)
    errors = {}
    for name, prompt, blend, by_two, by_one in zip(
        ("steered", "plain"),
        prompts,
        ({persona: 1.0}, {}),
        two["batches"][0],
        one["batches"][0],
        strict=True,
    ):
        assert by_two["tokens"] == by_one["tokens"]
        with oracle.steered(model, blend, FAMILY.projection, len(prompt) - 1):
            wanted = oracle.distributions(model, prompt + by_two["tokens"])
        errors[name] = oracle.error(by_two["distributions"], wanted)
        errors[f"{name} TP2-TP1"] = oracle.error(
            by_two["distributions"], np.asarray(by_one["distributions"])
        )
    measured(errors)
    assert max(errors.values()) < BOUND
