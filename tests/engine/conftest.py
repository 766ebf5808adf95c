from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine import models
from tests.warm import Warm, warm

HERE = Path(__file__).parent

ENVIRONMENT: dict[str, str | None] = {
    "VLLM_PLUGINS": "palign",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": None,  # whole GiB, and it would overrule kv_cache_memory_bytes
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "skip_tokenizer_init": True,
    "max_model_len": 64,
    "max_num_seqs": 8,
    "max_logprobs": -1,
    "kv_cache_memory_bytes": 16 << 20,
    "seed": 0,
}
"""Engine arguments of every test unless it says otherwise."""

RUNNERS: dict[str, dict[str, Any]] = {"v1": {}, "v2": {"runner": "v2"}}
"""Options of ``engines`` for each of vLLM's model runners."""

Run = Callable[..., list[dict[str, Any]]]


def run_engines(
    process: Warm,
    folder: Path,
    jobs: list[dict[str, Any]],
    *,
    environment: dict[str, str | None] | None = None,
    script: str = "driver.py",
) -> list[dict[str, Any]]:
    """Runs a list of engines in one fork of ``process`` and returns a result each. ``kwargs`` are added to
    ``ENGINE``; a variable of ``environment`` that is None is unset."""
    job, result = folder / "job.json", folder / "result.json"
    for engine in jobs:
        engine["kwargs"] = ENGINE | engine.get("kwargs", {})
    job.write_text(json.dumps({"engines": jobs}))
    # The driver leaves without exit handlers: what it has in its temporary folder goes with this one.
    with tempfile.TemporaryDirectory() as temporary:
        places: dict[str, str | None] = {
            "TMPDIR": temporary,
            "VLLM_CACHE_ROOT": str(folder / "cache"),
            # For functions that vLLM compiles unasked; a compiled model's are under the root above.
            "TORCHINDUCTOR_CACHE_DIR": str(folder.parent / "inductor"),
        }
        code, log = process.run(
            HERE / script,
            [str(job), str(result)],
            folder,
            ENVIRONMENT | process.environment | places | (environment or {}),
        )
    results = json.loads(result.read_text()) if result.exists() else []
    assert code == 0 and len(results) == len(jobs), f"exit {code}\n{log[-6000:]}"
    return results


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``run_engines`` with vLLM's ``runner``."""

    def run(
        jobs: list[dict[str, Any]], *, runner: str = "v1", **options: Any
    ) -> list[dict[str, Any]]:
        return run_engines(warm(runner), tmp_path_factory.mktemp("engines"), jobs, **options)

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``checkpoint("llama")``: the folder of that family's tiny random model, built once."""
    folder = tmp_path_factory.mktemp("models")

    def of(name: str) -> Path:
        path = folder / name
        return path if path.exists() else models.build(name, folder)

    return of
