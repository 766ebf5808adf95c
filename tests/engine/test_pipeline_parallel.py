"""Each pipeline rank steers its own layers, and its self-test proves it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Run, run_engines
from tests.engine.families import FAMILIES
from tests.engine.mixed import MixedBatch
from tests.shown import Measured
from tests.warm import Warm, warm
from vllm_palign.effect import SCOPES
from vllm_palign.worker.ops import TRACED

BOUND = 1e-4


@pytest.mark.shows("features", "pipeline parallel 2", note="a layer on each rank")
def test_two_stages_answer_as_the_reference_method_and_each_tests_its_own_hooks(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path: Path, measured: Measured
) -> None:
    batch = MixedBatch(tmp_path, checkpoint("llama"), FAMILIES["llama"])
    requests = batch.requests()
    (result,) = engines(
        [
            {
                "model": str(batch.model),
                "kwargs": {"pipeline_parallel_size": 2},
                "personas": batch.files,
                "batches": [requests, {"rpc": "armed"}, {"rpc": "lose_hooks_and_test_again"}],
            }
        ]
    )
    assert "error" not in result, result["error"]
    assert [bank["layers"] for bank in result["bank"]] == [[0], [1]]
    assert [bank["requests"] for bank in result["bank"]] == [0, 0]
    answers, armed, refused = result["batches"]
    assert armed == [
        {"traced": TRACED, "layers": [rank], "scopes": SCOPES, "tested": True} for rank in (0, 1)
    ]
    # Only the first stage can see that it has lost a hook: the last has layers of its own.
    assert [
        f"offsets in layers [{rank}] of 1 armed do not change" in said
        for rank, said in enumerate(refused)
    ] == [True, True]
    errors = batch.errors(requests, answers)
    measured(errors)
    effect = errors.pop("effect")
    assert max(errors.values()) < BOUND
    assert effect > 1000 * BOUND


@pytest.mark.shows(
    "features",
    "external_launcher",
    note="pipeline parallel 2; each rank an engine that asks itself alone",
)
def test_ranks_that_torchrun_starts_ask_themselves_and_answer_as_the_reference_method(
    checkpoint: Callable[[str], Path], tmp_path: Path, measured: Measured
) -> None:
    batch = MixedBatch(tmp_path, checkpoint("llama"), FAMILIES["llama"])
    requests = batch.requests(prompt_distributions=False)
    # vLLM names this shared memory alike in every such run, and one that was killed leaves it behind.
    for left in Path("/dev/shm").glob("-pp:*-cpushm_*"):
        left.unlink()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def rank(number: int) -> dict[str, Any]:
        folder = tmp_path / f"rank{number}"
        folder.mkdir()
        job = {
            "model": str(batch.model),
            "kwargs": {"pipeline_parallel_size": 2, "distributed_executor_backend": "external_launcher"},
            "personas": batch.files,
            "batches": [requests],
        }  # fmt: skip
        torchrun = {
            "RANK": f"{number}", "LOCAL_RANK": f"{number}", "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}",
        }  # fmt: skip
        (result,) = run_engines(processes[number], folder, [job], environment={**torchrun})
        return result

    # A warm process does one thing after the other, and the ranks wait for each other.
    processes = [warm(), Warm("v1")]
    with ThreadPoolExecutor(2) as ranks:
        results = list(ranks.map(rank, range(2)))
    processes[1].end()
    assert not [result["error"] for result in results if "error" in result]
    assert [result["bank"][0]["layers"] for result in results] == [[0], [1]]
    first, last = (result["batches"][0] for result in results)
    assert first == last, "each of them gives the whole answer"
    errors = batch.errors(requests, first)
    measured(errors)
    effect = errors.pop("effect")
    assert max(errors.values()) < BOUND
    assert effect > 1000 * BOUND
