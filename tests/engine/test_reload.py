"""Weights change under a running engine; personas stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import oracle
from tests.engine.conftest import Run
from tests.engine.families import FAMILIES
from tests.engine.mixed import MixedBatch
from tests.shown import Measured

BOUND = 1e-4


def other_weights(source: Path, target: Path) -> Path:
    """The model of ``source`` with the rows of every weight in reverse."""
    model = oracle.load_hf(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.flip(0))
    model.save_pretrained(target)
    return target


@pytest.mark.shows("features", "weight reload", note="`reload_weights`, other weights, twice")
@pytest.mark.shows(
    "features", "sleep and wake", note="engine side only: a CPU worker keeps its memory"
)
def test_after_sleep_wake_and_reloading_steered_answers_are_the_new_weights_steered(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path: Path, measured: Measured
) -> None:
    path = checkpoint("llama")
    other = other_weights(path, tmp_path / "other")
    batch = MixedBatch(tmp_path, path, FAMILIES["llama"])
    requests = batch.requests()

    def reload(source: Path) -> list[Any]:
        return [
            {
                "call": "collective_rpc",
                "args": ["reload_weights"],
                "kwargs": {"kwargs": {"weights_path": str(source)}},
            },
            {"call": "reset_prefix_cache"},
        ]

    steps = [
        requests,
        *({"call": "sleep", "args": [1]}, {"call": "wake_up"}),
        requests,
        *reload(other),
        requests,
        *reload(path),
        requests,
    ]
    (result,) = engines([{"model": str(path), "personas": batch.files, "batches": steps}])
    assert "error" not in result, result["error"]
    first, awake, changed, back = (answers for answers in result["batches"] if answers)
    assert awake == first
    assert back == first
    errors = batch.errors(requests, changed, oracle.load_hf(other))
    measured(errors)
    effect = errors.pop("effect")
    assert max(errors.values()) < BOUND
    assert effect > 1000 * BOUND
