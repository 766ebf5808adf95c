"""What cannot be steered is refused at start, by name, never answered plainly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Run
from tests.engine.models import build_gemma4, build_mamba, build_whisper, build_zamba2

REFUSED = {
    "pooling models": "only text generation is steered",
    "models without attention": "the model has no attention",
    "encoder-decoder models": "encoder-decoder models are not steered",
    "models whose output projection is not found": (
        "palign cannot steer LlamaForCausalLM: layer 0: 0 output projections"
    ),
    "models whose layers differ in head size (Gemma 4)": "layer 0 has head_dim 32, the model 64",
    "models whose layers share one attention (Zamba2)": "palign cannot steer Zamba2ForCausalLM",
    "dual batch overlap": "dual batch overlap",
}


@pytest.fixture(scope="module")
def results(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("refused")
    llama = str(checkpoint("llama"))
    jobs = {
        "pooling models": {"model": llama, "kwargs": {"runner": "pooling"}},
        "models without attention": {"model": str(build_mamba(folder / "mamba"))},
        "encoder-decoder models": {"model": str(build_whisper(folder / "whisper"))},
        "models whose output projection is not found": {
            "model": llama,
            "tamper": "unknown_projection_names",
        },
        "models whose layers differ in head size (Gemma 4)": {
            "model": str(build_gemma4(folder / "gemma4"))
        },
        "models whose layers share one attention (Zamba2)": {
            "model": str(build_zamba2(folder / "zamba2"))
        },
        "dual batch overlap": {
            "model": llama,
            "kwargs": {"ubatch_size": 2, "all2all_backend": "deepep_low_latency"},
        },
    }
    return dict(zip(jobs, engines(list(jobs.values())), strict=True))


def cases() -> Iterator[Any]:
    for row in REFUSED:
        yield pytest.param(row, marks=pytest.mark.shows("refusals", row))


@pytest.mark.parametrize("row", list(cases()))
def test_the_engine_does_not_start_and_says_why(
    row: str,
    results: dict[str, dict[str, Any]],
    record_property: Callable[[str, object], None],
) -> None:
    error = results[row]["error"]
    assert error["type"] == "PalignStartupError", error
    assert REFUSED[row] in error["message"]
    record_property("said", error["message"])
