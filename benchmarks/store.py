"""What a large registry costs: import, look-up, start, memory, and serving all of it.

    python benchmarks/store.py [--personas N] [--requests N] [--store sqlite postgresql] [--json]

For each database: personas of the demo model are imported; servers of the demo model are started with
0, 1,000 and all of them registered; look-ups go over HTTP; requests with personas never used before
take turns with requests for one hot persona. PostgreSQL is started for the purpose, on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from local_postgres import Postgres

from vllm_palign import Persona
from vllm_palign.registry import Registry
from vllm_palign.tenants.tenant import Tenant

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".demo" / "SmolLM2-135M-Instruct"
LAYERS, HEADS, HEAD_DIM = 30, 9, 64
STEERED = 24
IMPORTED_AT_ONCE = 256
CONCURRENCY = 16
BLOCKS = 5

ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""Engine and worker in one process. vLLM's default on CPUs is two that spin while they wait for each
other, and with the API server, the database and the client here they would be measured instead."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--personas", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--lookups", type=int, default=1000)
    parser.add_argument(
        "--tokens",
        type=int,
        default=8,
        help="new tokens a request; few, so that look-ups weigh most",
    )
    parser.add_argument(
        "--store", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"]
    )
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout")
    options = parser.parse_args()
    if options.personas <= options.requests + 3 * options.lookups:
        parser.error("--personas must be more than --requests and three times --lookups together")
    if options.model == MODEL:
        subprocess.run(
            [sys.executable, ROOT / "tools" / "demo_model.py", MODEL], check=True, stdout=sys.stderr
        )
    os.environ.update(ENVIRONMENT)
    result = {}
    for kind in options.store:
        with database(kind) as url:
            result[kind] = measure(url, options)
            say(json.dumps(result[kind]))
    print(json.dumps(result) if options.json else table(result, options))
    return 0


@contextmanager
def database(kind: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        if kind == "sqlite":
            yield f"sqlite:///{Path(folder) / 'registry.sqlite'}"
            return
        server = Postgres()
        try:
            server.start()
            yield server.url
        finally:
            server.remove()


def measure(url: str, options: argparse.Namespace) -> dict[str, Any]:
    registry = Registry(url, timeout=60)
    registry.migrate()
    result: dict[str, Any] = {"import_seconds": 0.0, "start": {}}
    registered = 0
    for size in sorted({0, min(1000, options.personas), options.personas}):
        result["import_seconds"] += fill(registry, registered, size)
        registered = size
        say(f"{url.partition(':')[0]}: {size} personas registered, starting a server")
        with server(url, options.model) as (base, start):
            result["start"][size] = start
            if size == options.personas:
                result |= asyncio.run(load(base, options))
    result["import_rate"] = options.personas / result["import_seconds"]
    registry.close()
    return result


def fill(registry: Registry, first: int, end: int) -> float:
    """Seconds to check and register personas ``first`` to ``end``; making them does not count."""
    seconds = 0.0
    rng = np.random.default_rng(first)
    for start in range(first, end, IMPORTED_AT_ONCE):
        files = {
            name(index): made(rng, index)
            for index in range(start, min(end, start + IMPORTED_AT_ONCE))
        }
        began = time.perf_counter()
        registry.add_missing(
            Tenant(), [(key, Persona.from_bytes(data), data) for key, data in files.items()]
        )
        seconds += time.perf_counter() - began
    return seconds


def name(index: int) -> str:
    return f"user{index:06}"


def made(rng: np.random.Generator, index: int) -> bytes:
    places = np.sort(rng.choice(LAYERS * HEADS, STEERED, replace=False)).astype(np.int32)
    return Persona(
        name=name(index),
        layers=places // HEADS,
        heads=places % HEADS,
        offsets=rng.standard_normal((STEERED, HEAD_DIM), dtype=np.float32) * np.float32(0.05),
        alpha=1.0,
        base_model=MODEL.name,
        num_layers=LAYERS,
        num_heads=HEADS,
        head_dim=HEAD_DIM,
    ).to_bytes()


@contextmanager
def server(url: str, model: Path, *options: str) -> Iterator[tuple[str, dict[str, float]]]:
    """A running server's URL, and the seconds and resident MiB (API server, all processes) it took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("vllm"), "serve", model, "--served-model-name", "base",
             "--host", "127.0.0.1", "--port", str(port), "--plugin", "palign", "--palign-store", url,
             "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", str(CONCURRENCY),
             "--disable-uvicorn-access-log", "--distributed-executor-backend", ONE_PROCESS, *options],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        base = f"http://127.0.0.1:{port}"
        try:
            while process.poll() is None and not healthy(base):
                time.sleep(0.1)
            if process.poll() is not None:
                log.seek(0)
                raise SystemExit(log.read().decode(errors="replace")[-4000:])
            seconds = time.perf_counter() - began
            family = psutil.Process(process.pid)
            memory = [family.memory_info().rss] + [
                child.memory_info().rss for child in family.children(recursive=True)
            ]
            yield (
                base,
                {
                    "seconds": seconds,
                    "api_server_mib": memory[0] / 2**20,
                    "all_mib": sum(memory) / 2**20,
                },
            )
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def healthy(base: str) -> bool:
    try:
        return httpx.get(f"{base}/health").status_code == 200
    except httpx.TransportError:
        return False


async def load(base: str, options: argparse.Namespace) -> dict[str, Any]:
    # Shorter than the 5 s after which the server closes: no request meets a closed connection.
    limits = httpx.Limits(max_connections=CONCURRENCY, keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=base, timeout=120, limits=limits) as web:

        async def ask(persona: str, tokens: int) -> None:
            body = {"model": "base", "prompt": [1, 2, 3, 4], "max_tokens": tokens, "temperature": 0,
                    "ignore_eos": True, "persona": persona}  # fmt: skip
            (await web.post("/v1/completions", json=body)).raise_for_status()

        async def knock(persona: str) -> None:
            """All that palign does with a request; then vLLM refuses it."""
            body = {"model": "base", "prompt": "x", "max_tokens": -1, "persona": persona}
            reply = await web.post("/v1/completions", json=body)
            assert reply.status_code == 400, reply.text

        async def show(persona: str) -> None:
            (await web.get(f"/v1/personas/{persona}")).raise_for_status()

        order = random.Random(0).sample(range(options.personas), options.personas)
        fresh = iter(name(index) for index in order[:-1])
        hot = name(order[-1])
        for _ in range(50):  # warm up
            await ask(hot, 1)
        say("look-ups")
        found = {"lookup_ms": await latencies(show, list(islice(fresh, options.lookups)))}
        for key, call in (("door", knock), ("token", partial(ask, tokens=1))):
            say(f"first use against hot: {key}")
            first, later = found[f"first_{key}_ms"], found[f"hot_{key}_ms"] = [], []
            for persona in islice(fresh, options.lookups):
                first += await latencies(call, [persona])
                later += await latencies(call, [hot])
        distinct = list(islice(fresh, options.requests))
        seconds: dict[str, list[float]] = {"distinct": [], "one": []}
        share = len(distinct) // BLOCKS
        for block in range(BLOCKS):
            kinds = {
                "distinct": distinct[block * share : (block + 1) * share],
                "one": [hot] * share,
            }
            for kind in list(kinds) if block % 2 else list(kinds)[::-1]:
                seconds[kind].append(
                    await together(partial(ask, tokens=options.tokens), kinds[kind])
                )
            say(f"block {block + 1} of {BLOCKS}")
        ratios = [one / all_ for one, all_ in zip(seconds["one"], seconds["distinct"], strict=True)]
        return {
            **{key: percentiles(values) for key, values in found.items()},
            "tokens_per_second": {
                kind: share * BLOCKS * options.tokens / sum(times)
                for kind, times in seconds.items()
            },
            "distinct_of_one": [min(ratios), statistics.median(ratios), max(ratios)],
        }


async def latencies(call: Callable[[str], Awaitable[None]], personas: list[str]) -> list[float]:
    """Milliseconds of each call, one after the other."""
    found = []
    for persona in personas:
        began = time.perf_counter()
        await call(persona)
        found.append((time.perf_counter() - began) * 1000)
    return found


async def together(call: Callable[[str], Awaitable[None]], personas: list[str]) -> float:
    """Seconds for all calls, ``CONCURRENCY`` at a time."""
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(persona: str) -> None:
        async with gate:
            await call(persona)

    began = time.perf_counter()
    await asyncio.gather(*map(one, personas))
    return time.perf_counter() - began


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{part}": float(np.percentile(values, part)) for part in (50, 99)}


def table(result: dict[str, Any], options: argparse.Namespace) -> str:
    rows: dict[str, list[str]] = {}

    def row(title: str, text: str) -> None:
        rows.setdefault(title, []).append(text)

    for found in result.values():
        row("import, personas/s", f"{found['import_rate']:.0f}")
        for size, start in found["start"].items():
            row(f"start with {size}, s", f"{start['seconds']:.1f}")
            row(
                f"resident with {size}, MiB (API server / all)",
                f"{start['api_server_mib']:.0f} / {start['all_mib']:.0f}",
            )
        for title, key in (
            ("GET /v1/personas/ID, ms (p50 / p99)", "lookup_ms"),
            ("first use, up to the engine's door, ms", "first_door_ms"),
            ("hot, up to the engine's door, ms", "hot_door_ms"),
            ("first use, answer of 1 token, ms", "first_token_ms"),
            ("hot, answer of 1 token, ms", "hot_token_ms"),
        ):
            row(title, f"{found[key]['p50']:.2f} / {found[key]['p99']:.2f}")
        for title, key in (
            ("first use beyond hot, up to the engine's door, ms", "door_ms"),
            ("first use beyond hot, answer of 1 token, ms", "token_ms"),
        ):
            first, later = found[f"first_{key}"], found[f"hot_{key}"]
            beyond = [first[part] - later[part] for part in ("p50", "p99")]
            row(title, " / ".join(f"{part:.2f}" for part in beyond))
        speed = found["tokens_per_second"]
        row("all different, tokens/s", f"{speed['distinct']:.1f}")
        row("one persona, tokens/s", f"{speed['one']:.1f}")
        low, middle, high = found["distinct_of_one"]
        row("all different of one (range of blocks)", f"{middle:.3f} ({low:.3f} to {high:.3f})")
    lines = [
        f"{options.personas} personas, {options.requests} + {options.requests} requests of "
        f"{options.tokens} tokens, {CONCURRENCY} at a time, bfloat16, eager",
        "",
        "| | " + " | ".join(result) + " |",
        "|---" * (len(result) + 1) + "|",
    ]
    lines += [f"| {title} | " + " | ".join(texts) + " |" for title, texts in rows.items()]
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
