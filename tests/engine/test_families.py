"""Every decoder family equals Hugging Face with ``o_proj.bias += W_o d``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.engine.conftest import Run
from tests.engine.families import FAMILIES
from tests.engine.mixed import MixedBatch
from tests.shown import Measured

BOUND = 1e-4
"""Largest |log-probability difference|, over the whole vocabulary, prompt and answer."""


@dataclass
class Answered:
    batch: MixedBatch
    requests: list[dict[str, Any]]
    result: dict[str, Any]


@pytest.fixture(scope="module")
def answered(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Answered]:
    """All families in one process: importing vLLM takes longer than a tiny engine."""
    batches = {
        name: MixedBatch(tmp_path_factory.mktemp("personas"), checkpoint(name), family)
        for name, family in FAMILIES.items()
    }
    requests = {name: batch.requests() for name, batch in batches.items()}
    results = engines(
        [
            {
                "model": str(batch.model),
                "kwargs": batch.family.engine,
                "personas": batch.files,
                "batches": [requests[name]],
            }
            for name, batch in batches.items()
        ]
    )
    return {
        name: Answered(batches[name], requests[name], result)
        for name, result in zip(FAMILIES, results, strict=True)
    }


def cases() -> Iterator[Any]:
    for name, family in FAMILIES.items():
        marks = pytest.mark.shows("families", name, model=name, note=family.traits)
        yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", list(cases()))
def test_log_probabilities_of_a_steered_request_equal_the_reference_method(
    name: str, answered: dict[str, Answered], measured: Measured
) -> None:
    found = answered[name]
    assert "error" not in found.result, found.result["error"]
    reference = oracle.load_hf(found.batch.model, exact_gelu=found.batch.family.exact_gelu)
    errors = found.batch.errors(found.requests, found.result["batches"][0], reference)
    measured(errors)
    effect, plain = errors.pop("effect"), errors.pop("plain")
    # Where vLLM computes something else than Hugging Face, steering may not make it worse.
    bound = 3 * plain if found.batch.family.inexact else BOUND
    assert plain < bound, "vLLM and Hugging Face differ before anything is steered"
    assert max(errors.values()) < bound
    # Nothing applied, or to the wrong head, could not stay within the bound.
    assert effect > max(1000 * BOUND, 100 * bound)


def test_the_families_include_one_whose_heads_do_not_add_up_to_the_hidden_size() -> None:
    fields = FAMILIES["llama"].fields
    assert fields["num_attention_heads"] * fields["head_dim"] != fields["hidden_size"]
