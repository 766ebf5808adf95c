"""KV blocks that leave the engine come back to requests of the same effect only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.engine.conftest import Run
from tests.engine.families import FAMILIES
from tests.engine.mixed import MixedBatch
from tests.engine.models import random_prompt
from tests.shown import Measured

BOUND = 1e-4
BLOCK = 32


def offloading(**spec: str) -> dict[str, Any]:
    return {
        "block_size": BLOCK,
        "max_model_len": 128,
        "kv_transfer_config": {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"cpu_bytes_to_use": 16 << 20, **spec},
        },
    }


@pytest.fixture(scope="module")
def results(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[MixedBatch, list[list[dict[str, Any]]], list[dict[str, Any]]]:
    batch = MixedBatch(tmp_path_factory.mktemp("personas"), checkpoint("llama"), FAMILIES["llama"])
    same = random_prompt(1, length=70)
    first = batch.requests(lambda seed: same, prompt_distributions=False)
    # Nobody has steered a prompt like this; and one whose prompt is everybody's.
    stranger = first[1] | {"persona": {"id": "alice", "strength": 1.3, "scope": "all"}}
    neighbour = first[1] | {"persona": {"id": "alice", "strength": 1.4}}
    job = {"model": str(batch.model), "personas": batch.files}
    found = engines(
        [
            job
            | {
                "kwargs": offloading(spec_name="HostMemorySpec", spec_module_path="host_memory"),
                # What the engine itself remembers is forgotten: only offloaded blocks can be found.
                "batches": [
                    first,
                    {"call": "reset_prefix_cache"},
                    [stranger],
                    [neighbour],
                    {"call": "reset_prefix_cache"},
                    first,
                ],
            },
            job | {"kwargs": offloading()},
        ]
    )
    return batch, [first, [stranger]], found


@pytest.mark.shows(
    "features",
    "KV offloading (OffloadingConnector)",
    note="vLLM's connector and manager; its CUDA copies replaced by copies on the host",
)
def test_blocks_come_back_from_host_memory_to_those_who_would_compute_them_alike_only(
    results: tuple[MixedBatch, list[list[dict[str, Any]]], list[dict[str, Any]]],
    measured: Measured,
) -> None:
    batch, (requests, _), (result, _) = results
    assert "error" not in result, result["error"]
    cold, _, (stranger,), (neighbour,), _, warm = result["batches"]
    # Alice and the blend find the plain request's blocks, bob is steered everywhere.
    assert [answer["cached"] for answer in cold] == [0, 2 * BLOCK, 0, 2 * BLOCK]
    assert stranger["cached"] == 0
    assert neighbour["cached"] == 2 * BLOCK
    assert [answer["cached"] for answer in warm] == [2 * BLOCK] * 4
    reference = oracle.load_hf(batch.model)
    errors = batch.errors(requests, warm, reference)
    measured(errors)
    effect = errors.pop("effect")
    assert max(errors.values()) < BOUND
    assert effect > 1000 * BOUND


@pytest.mark.shows("not on CPU", "KV offloading's own copies")
def test_vllms_own_copies_need_a_gpu(
    results: tuple[MixedBatch, list[list[dict[str, Any]]], list[dict[str, Any]]],
    record_property: Callable[[str, object], None],
) -> None:
    _, _, (_, stock) = results
    assert "currently only supported on CUDA-alike" in stock["error"]["message"]
    record_property("said", stock["error"]["message"])
