"""What befalls a worker that serves changes nobody's answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import RUNNERS, Run
from .families import FAMILIES
from .models import random_persona, random_prompt

FAMILY = FAMILIES["llama"]


def job(checkpoint: Callable[[str], Path], folder: Path) -> dict[str, Any]:
    files = {who: folder / f"{who}.safetensors" for who in ("alice", "bob")}
    for seed, file in enumerate(files.values()):
        random_persona(file, seed=seed, family=FAMILY)
    return {
        "model": str(checkpoint("llama")),
        "kwargs": {"max_num_seqs": 4, "enable_prefix_caching": False},
        "personas": {who: str(file) for who, file in files.items()},
    }


@pytest.mark.parametrize("runner", RUNNERS)
def test_warming_up_and_testing_again_between_two_steps_changes_no_answer(
    runner: str, engines: Run, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    batch = [
        {"prompt": random_prompt(1), "persona": "alice", "max_tokens": 8},
        {"prompt": random_prompt(2), "max_tokens": 8},
        {"prompt": random_prompt(3), "persona": "bob", "max_tokens": 8},
    ]
    plain = [{"prompt": request["prompt"], "max_tokens": 8} for request in batch]
    again = {"rpc": "warm_up_again", "between": batch}
    batches = [batch, again, batch, plain]
    (result,) = engines([job(checkpoint, tmp_path) | {"batches": batches}], **RUNNERS[runner])
    assert "error" not in result, result["error"]
    alone, interrupted, after, unsteered = (
        [np.array(answer["distributions"]) for answer in answers] for answers in result["batches"]
    )
    for wanted, got, later, without, request in zip(
        alone, interrupted, after, unsteered, batch, strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=1e-4)
        np.testing.assert_allclose(later, wanted, atol=1e-4)
        if "persona" in request:
            assert np.abs(without[-1] - wanted[-1]).max() > 0.1
    assert result["bank"][0]["neutral"] == 0.0


def test_a_ready_made_request_that_was_never_admitted_is_refused_and_the_engine_lives(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    steered = {"prompt": random_prompt(1), "persona": "alice"}
    plain = {"prompt": random_prompt(1)}
    straight = {"ready_made": steered, "straight": True}
    batches = [{"ready_made": steered}, straight, {"ready_made": plain}, [steered, plain]]
    (result,) = engines([job(checkpoint, tmp_path) | {"batches": batches}])
    assert "error" not in result, result["error"]
    refused, refused_by_the_core, served, answers = result["batches"]
    assert refused[0] == refused_by_the_core[0] == "PersonaInvalid"
    assert "has not admitted" in refused_by_the_core[1]
    assert "give the engine the prompt and the SamplingParams instead" in refused[1]
    assert served == ["", ""]
    assert answers[0]["distributions"] != answers[1]["distributions"]
    assert result["bank"][0]["requests"] == 0
