"""The servers that are compared: started together, one core for the engine whose turn it is."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

SERVED = "SmolLM2"
START_SECONDS = 600
LOOK_SECONDS = 0.5

ENVIRONMENT = {
    # Spinning OpenMP threads of the engine whose turn it is not would slow the other one down.
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass
class Kv:
    """What a server did with its KV cache for a while."""

    most_blocks: int = 0
    """The largest number of blocks that running requests held at once, looked at twice a second."""
    found: float = 0.0
    """Share of all prompt tokens that were in the cache."""


class Server:
    """A ``vllm serve`` of its own session. ``options`` come after the ones all servers share."""

    def __init__(self, model: Path, log: Path, *options: str | Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        environment = {**os.environ, **ENVIRONMENT}
        environment.pop("VLLM_PLUGINS", None)
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    Path(sys.executable).with_name("vllm"), "serve", model, "--served-model-name", SERVED,
                    "--host", "127.0.0.1", "--port", str(self.port), "--disable-uvicorn-access-log",
                    *options,
                ],
                stdout=out, stderr=out, env=environment, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Until it answers. Raises SystemExit with the end of its log if it does not."""
        began = time.monotonic()
        while True:
            if self._process.poll() is not None or time.monotonic() - began > START_SECONDS:
                raise SystemExit(f"a server did not start:\n{self._log.read_text()[-4000:]}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            time.sleep(0.5)

    def pin(self, *, engine: int, front: int) -> None:
        """The worker, which runs the model, alone on one core, everything else on the other."""
        for process in self._family():
            core = engine if "Worker" in " ".join(process.cmdline()) else front
            for thread in process.threads():
                os.sched_setaffinity(thread.id, {core})

    def memory(self) -> float:
        """MiB of all its processes, shared pages divided among those that share them (PSS)."""
        return float(sum(process.memory_full_info().pss for process in self._family()) / 2**20)

    def cpu_seconds(self) -> tuple[float, float]:
        """(API server, engine and worker): processor time so far. What else runs on the machine is not in it."""
        seconds = [sum(process.cpu_times()[:2]) for process in self._family()]
        return seconds[0], sum(seconds[1:])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a counter's or gauge's samples that have ``labels``."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rpartition(" ")[2])
            for line in httpx.get(f"{self.url}/metrics/").text.splitlines()
            if re.match(rf"{name}[ {{]", line) and all(label in line for label in wanted)
        )

    def kv_blocks(self) -> tuple[int, int]:
        """(tokens a block, blocks) of its KV cache."""
        text = httpx.get(f"{self.url}/metrics/").text
        found = [
            re.search(rf'vllm:cache_config_info{{.*\b{key}="(\d+)"', text)
            for key in ("block_size", "num_gpu_blocks")
        ]
        size, count = (int(match[1]) for match in found if match)
        return size, count

    def prompt_tokens(self) -> tuple[float, float]:
        """(found in the cache, all of them) so far."""
        found, asked = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
        return self.metric(found), self.metric(asked)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Kv]:
        """Filled when it ends."""
        kv, ended = Kv(), threading.Event()
        _, blocks = self.kv_blocks()

        def look() -> None:
            while not ended.wait(LOOK_SECONDS):
                used = self.metric("vllm:kv_cache_usage_perc")
                kv.most_blocks = max(kv.most_blocks, round(used * blocks))

        looking = threading.Thread(target=look)
        before = self.prompt_tokens()
        looking.start()
        try:
            yield kv
        finally:
            ended.set()
            looking.join()
        found, asked = (now - was for now, was in zip(self.prompt_tokens(), before, strict=True))
        kv.found = found / asked

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _family(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]
