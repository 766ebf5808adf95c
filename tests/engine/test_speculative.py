"""A draft model is not steered and need not be: what it drafts wrongly the steered target rejects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Run
from tests.engine.families import FAMILIES
from tests.engine.mixed import MixedBatch
from tests.shown import Measured

BOUND = 1e-4


@pytest.mark.shows(
    "features",
    "draft-model speculative decoding",
    note="two drafted tokens; the target itself drafts",
)
def test_answers_are_the_steered_targets_and_only_steered_requests_reject_the_targets_own_drafts(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path: Path, measured: Measured
) -> None:
    batch = MixedBatch(tmp_path, checkpoint("llama"), FAMILIES["llama"])
    steered = batch.requests(max_tokens=16, prompt_distributions=False)
    plain = [request | {"persona": None} for request in steered]
    job: dict[str, Any] = {
        "model": str(batch.model),
        "kwargs": {
            "disable_log_stats": False,
            "speculative_config": {
                "method": "draft_model",
                # The same weights: unsteered it drafts what an unsteered target answers.
                "model": str(batch.model),
                "num_speculative_tokens": 2,
            },
        },
        "personas": batch.files,
    }
    with_personas, without = engines([job | {"batches": [steered]}, job | {"batches": [plain]}])
    for result in (with_personas, without):
        assert "error" not in result, result["error"]
    errors = batch.errors(steered, with_personas["batches"][0])
    measured(errors)
    effect = errors.pop("effect")
    assert max(errors.values()) < BOUND
    assert effect > 1000 * BOUND
    assert _acceptance(without) == 1.0
    assert 0.0 < _acceptance(with_personas) < 0.9


def _acceptance(result: dict[str, Any]) -> float:
    metrics = result["metrics"]
    accepted = metrics["spec_decode_num_accepted_tokens"]
    return float(accepted / metrics["spec_decode_num_draft_tokens"])
