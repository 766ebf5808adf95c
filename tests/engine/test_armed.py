"""An engine that does not steer is found before it answers anybody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import UNIPROC
from tests.engine.conftest import Run
from tests.engine.families import FAMILIES
from tests.engine.models import random_persona, random_prompt

SPAWNED = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}


@pytest.fixture(scope="module")
def results(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("personas")
    random_persona(folder / "alice.safetensors", seed=0, family=FAMILIES["llama"])
    job = {
        "model": str(checkpoint("llama")),
        "personas": {"alice": str(folder / "alice.safetensors")},
        "prompt": random_prompt(1),
        "kwargs": {"distributed_executor_backend": UNIPROC},
    }
    unarmed = {"tamper": "engine_processes_without_the_plugin"}
    scenarios = {
        "armed": ["armed_engine", "scaled"],
        "unarmed": ["asked"],
        "unarmed, asked": ["engines_asked"],
        "unarmed, scaled": ["scaled"],
    }
    jobs = {
        name: job | ({} if name == "armed" else unarmed) | {"scenarios": scenarios[name]}
        for name in scenarios
    }
    answers = engines(list(jobs.values()), script="async_driver.py", environment=SPAWNED)
    return dict(zip(jobs, answers, strict=True))


def test_armed_engines_say_so_and_answer(results: dict[str, Any]) -> None:
    for found in results["armed"]:
        assert found["error"] is None
        assert len(found["plain"]["tokens"]) == len(found["steered"]["tokens"]) == 4
        assert found["plain"]["tokens"] != found["steered"]["tokens"]


def test_a_request_that_goes_past_the_front_end_is_an_error_for_itself_alone(
    results: dict[str, Any],
) -> None:
    """The engine answers the next ones, as the test above sees."""
    assert results["armed"][0]["straight"] == {
        "unadmitted": "error", "changed": "error", "admitted": "length",
    }  # fmt: skip


def test_an_engine_without_the_plugin_cannot_run_a_steered_request(results: dict[str, Any]) -> None:
    """Nobody asked it anything before: the request itself is what it cannot read."""
    ((plain, steered),) = results["unarmed"]
    assert plain["tokens"] == results["armed"][0]["plain"]["tokens"]
    assert steered["tokens"] == []
    assert steered.get("error") or steered["reason"] == "error"


def test_a_front_end_whose_engine_does_not_steer_says_so_and_lets_no_steered_request_in(
    results: dict[str, Any],
) -> None:
    for name in ("unarmed, asked", "unarmed, scaled"):
        (found,) = results[name]
        assert found["error"] == "PalignStartupError"
        assert "engine 0 of 1 does not steer" in found["message"]
        assert "--plugin palign" in found["message"]
        assert len(found["plain"]["tokens"]) == 4
        assert found["steered"]["error"] == "PalignStartupError"
