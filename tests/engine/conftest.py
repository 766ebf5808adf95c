from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine import models

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

RUNNERS: dict[str, dict[str, Any]] = {
    "v1": {},
    "v2": {
        "script": "v2_driver.py",
        "environment": {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"},
    },
}
"""Options of ``engines`` for each of vLLM's model runners."""

Run = Callable[..., list[dict[str, Any]]]


def run_engines(
    folder: Path,
    engines: list[dict[str, Any]],
    *,
    environment: dict[str, str | None] | None = None,
    script: str = "driver.py",
    timeout: float = 400,
) -> list[dict[str, Any]]:
    """Run the engines in one subprocess; a result each. ``kwargs`` are added to ``ENGINE``; a
    variable of ``environment`` that is None is unset."""
    variables = (
        os.environ | ENVIRONMENT | {"VLLM_CACHE_ROOT": str(folder / "cache")} | (environment or {})
    )
    job, result = folder / "job.json", folder / "result.json"
    for engine in engines:
        engine["kwargs"] = ENGINE | engine.get("kwargs", {})
    job.write_text(json.dumps({"engines": engines}))
    # The driver leaves without exit handlers: what it has in its temporary folder goes with this one.
    with tempfile.TemporaryDirectory() as temporary, (folder / "log.txt").open("w") as log:
        variables["TMPDIR"] = temporary
        # Our own group, so that a timeout leaves no engine behind.
        process = subprocess.Popen(
            [sys.executable, str(HERE / script), str(job), str(result)],
            env={name: value for name, value in variables.items() if value is not None},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            code = "timeout"
    log_text = (folder / "log.txt").read_text(errors="replace")
    results = json.loads(result.read_text()) if result.exists() else []
    assert code == 0 and len(results) == len(engines), f"exit {code}\n{log_text[-6000:]}"
    return results


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a list of engines in a subprocess of its own and returns their results."""

    def run(jobs: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        return run_engines(tmp_path_factory.mktemp("engines"), jobs, **options)

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``checkpoint("llama")``: the folder of that family's tiny random model, built once."""
    folder = tmp_path_factory.mktemp("models")

    def of(name: str) -> Path:
        path = folder / name
        return path if path.exists() else models.build(name, folder)

    return of
