"""The server's lives: started, killed, started again over the same registry; and its memory."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil

from tests.conftest import ONE_PROCESS, TINY, Server, start_server, stop_server
from tests.directions import tiny_directions
from tests.soak.tally import Wrong
from vllm_palign.directions import to_bytes

KILLS = ("engine", "front", "everything")
"""The engine process; one of the two API server processes; all processes at once, as when the
machine's power fails."""

OPTIONS = (
    "--plugin", "palign", "--palign-cache-mib", "1", "--api-server-count", "2", "--dtype", "float32",
    "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4", "--block-size", "32",
    "--return-tokens-as-token-ids", "--kv-cache-memory-bytes", str(1 << 20), *ONE_PROCESS,
)  # fmt: skip
"""Little of everything: sequences (slots are reused), KV blocks (they are evicted, requests preempted),
personas in memory (fetched again)."""

END_SECONDS = 60


@dataclass(frozen=True)
class Sample:
    life: int
    seconds: float
    """Since that life began."""
    requests: int
    """Answered so far, in all lives."""
    memory: int
    """Bytes of all processes of the server, as ``own_memory`` counts them."""


class Servers:
    """``up`` is set while requests may be sent."""

    def __init__(self, model: Path, folder: Path, tenants: Path) -> None:
        self._model, self._folder = model, folder
        directions = folder / "directions.safetensors"
        directions.write_bytes(to_bytes(tiny_directions(**TINY)))
        self._options = (
            *OPTIONS, "--palign-tenants", str(tenants),
            "--palign-store", f"sqlite:///{folder / 'registry.sqlite'}",
            "--palign-directions", str(directions),
        )  # fmt: skip
        self.up = asyncio.Event()
        self.life = 0
        self.kills: list[str] = []
        self.samples: list[Sample] = []
        self._killed_at = -math.inf
        self._began = 0.0
        self._server: Server | None = None
        self._clients: dict[str, openai.AsyncOpenAI] = {}
        self.web = httpx.AsyncClient()

    @property
    def server(self) -> Server:
        assert self._server is not None
        return self._server

    def log(self, life: int) -> Path:
        return self._folder / f"server-{life}.log"

    async def start(self) -> None:
        """Does not set ``up``: what was acknowledged is looked at first."""
        self.life += 1
        log = self.log(self.life)
        self._server = await asyncio.to_thread(
            start_server, self._model, log, *self._options, VLLM_HTTP_TIMEOUT_KEEP_ALIVE="600"
        )
        # The client closes idle connections long before the server: no request should meet a closed one,
        # also where both wait seconds for a processor.
        limits = httpx.Limits(keepalive_expiry=60)
        self.web = httpx.AsyncClient(base_url=self._server.url, limits=limits, timeout=120)
        self._clients = {}
        self._began = time.monotonic()

    async def stop(self) -> None:
        self.up.clear()
        if self._server is not None:
            await asyncio.to_thread(stop_server, self._server)

    async def kill(self, kind: str) -> None:
        """Kill one process or all, and see the server end. Raises Wrong if it lives on."""
        # In a thread, so that requests are under way when the process dies.
        family = await asyncio.to_thread(self.processes)
        self.up.clear()
        self._killed_at = time.monotonic()
        self.kills.append(kind)
        if kind == "everything":
            for process in family:
                _kill(process.pid)
        else:
            part = {"engine": "EngineCore", "front": "APIServer"}[kind]
            _kill(next(process.pid for process in family if part in _title(process)))
        _, alive = await asyncio.to_thread(psutil.wait_procs, family, END_SECONDS)
        for process in alive:
            _kill(process.pid)
        self.server.process.wait()
        if alive:
            raise Wrong(
                f"{END_SECONDS} s after its {kind} was killed the server still had "
                f"{len(alive)} processes"
            )

    def killed_since(self, start: float) -> bool:
        return self._killed_at >= start

    def processes(self) -> list[psutil.Process]:
        parent = psutil.Process(self.server.process.pid)
        return [parent, *parent.children(recursive=True)]

    def sample(self, requests: int) -> None:
        memory = 0
        for process in self.processes():
            with contextlib.suppress(
                FileNotFoundError, ProcessLookupError
            ):  # a helper that has just ended
                memory += own_memory(process.pid)
        self.samples.append(Sample(self.life, time.monotonic() - self._began, requests, memory))

    def client(self, key: str) -> openai.AsyncOpenAI:
        """The OpenAI client with an API key."""
        if key not in self._clients:
            self._clients[key] = openai.AsyncOpenAI(
                base_url=f"{self.server.url}/v1", api_key=key, max_retries=0, http_client=self.web
            )
        return self._clients[key]


def own_memory(pid: int) -> int:
    """Bytes that a process has written: its anonymous and its shared memory, the latter divided by those
    who share it. Not the files it maps: their share grows by a hundred MiB when another program that
    maps torch's libraries ends."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kib = dict(re.findall(r"^(Pss_Anon|Pss_Shmem): +([0-9]+) kB$", rollup, re.MULTILINE))
    return 1024 * (int(kib["Pss_Anon"]) + int(kib["Pss_Shmem"]))


def _title(process: psutil.Process) -> str:
    """What the process calls itself."""
    return " ".join(process.cmdline())


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
