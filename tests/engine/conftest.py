from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
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

LONGEST = 400
"""Seconds after which a job is killed."""

RUNNERS: dict[str, dict[str, Any]] = {"v1": {}, "v2": {"runner": "v2"}}
"""Options of ``engines`` for each of vLLM's model runners."""

ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "v1": ENVIRONMENT,
    "v2": ENVIRONMENT | {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"},
}

Run = Callable[..., list[dict[str, Any]]]


def variables(changes: dict[str, str | None]) -> dict[str, str]:
    """The environment with these changes; a variable that is None is unset."""
    changed = os.environ | changes
    return {name: value for name, value in changed.items() if value is not None}


class Warm:
    """``warm.py`` for one of vLLM's model runners."""

    def __init__(self, runner: str, folder: Path) -> None:
        self.log = folder / f"warm-{runner}.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "warm.py"), runner],
                env=variables(ENVIRONMENTS[runner]),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1,
            )  # fmt: skip

    def run(self, job: dict[str, Any]) -> int:
        """The job's exit code."""
        assert self.process.stdin
        print(json.dumps(job), file=self.process.stdin)
        too_long = threading.Timer(LONGEST, os.killpg, (self._answer(), signal.SIGKILL))
        too_long.start()
        code = self._answer()
        too_long.cancel()
        return code

    def _answer(self) -> int:
        assert self.process.stdout
        answer = self.process.stdout.readline()
        assert answer, self.log.read_text()[-6000:]
        return int(answer)

    def end(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Warm]]:
    """``warm("v2")``: the process that runs the jobs of that model runner, started once."""
    folder, running = tmp_path_factory.mktemp("warm"), dict[str, Warm]()

    def of(runner: str) -> Warm:
        if runner not in running:
            running[runner] = Warm(runner, folder)
        return running[runner]

    yield of
    for each in running.values():
        each.end()


def run_engines(
    warm: Warm,
    folder: Path,
    engines: list[dict[str, Any]],
    environment: dict[str, str],
    driver: str,
) -> list[dict[str, Any]]:
    """``kwargs`` are added to ``ENGINE``."""
    job, result = folder / "job.json", folder / "result.json"
    for engine in engines:
        engine["kwargs"] = ENGINE | engine.get("kwargs", {})
    job.write_text(json.dumps({"engines": engines}))
    # The driver leaves without exit handlers: what it has in its temporary folder goes with this one.
    with tempfile.TemporaryDirectory() as temporary:
        code = warm.run(
            {
                "driver": driver,
                "arguments": [str(job), str(result)],
                "folder": str(folder),
                "environment": environment | {"TMPDIR": temporary},
            }
        )
    log_text = (folder / "log.txt").read_text(errors="replace")
    results = json.loads(result.read_text()) if result.exists() else []
    assert code == 0 and len(results) == len(engines), f"exit {code}\n{log_text[-6000:]}"
    return results


@pytest.fixture(scope="module")
def engines(warm: Callable[[str], Warm], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a list of engines in one subprocess and returns a result each; a variable of ``environment`` that is
    None is unset."""

    def run(
        jobs: list[dict[str, Any]],
        *,
        runner: str = "v1",
        environment: dict[str, str | None] | None = None,
        driver: str = "driver",
    ) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("engines")
        caches: dict[str, str | None] = {
            "VLLM_CACHE_ROOT": str(folder / "cache"),
            # For functions that vLLM compiles without being asked to; a compiled model's are under the root above.
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "inductor"),
        }
        changed = variables(ENVIRONMENTS[runner] | caches | (environment or {}))
        return run_engines(warm(runner), folder, jobs, changed, driver)

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``checkpoint("llama")``: the folder of that family's tiny random model, built once."""
    folder = tmp_path_factory.mktemp("models")

    def of(name: str) -> Path:
        path = folder / name
        return path if path.exists() else models.build(name, folder)

    return of
