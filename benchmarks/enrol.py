"""What enrolment costs: questionnaires to personas over HTTP, beside an idle engine and a busy one.

    python benchmarks/enrol.py [--directions FILE] [--personas N] [--store sqlite postgresql] [--json]

For each database a server of the demo model is started, and
- 16 clients enrol as fast as they are answered, and then 300 a second between them: the whole server on one core;
- 16 steered requests are answered all the time, in turns alone, beside 50 enrolments a second and beside 50 bodies
  of junk: the engine on one core, the API server and this client on the other;
- a persona enrolled a moment ago, one never used before and one in use are asked in turn for a token;
- personas are enrolled until there are N, in tenths.

Everybody answers all items, each otherwise. Without --directions FILE they are made by palign-fit first, which takes
minutes. PostgreSQL is started for the purpose, on loopback, on the client's core.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import psutil
from store import ENVIRONMENT, MODEL, ROOT, database, percentiles, say, server

CLIENTS = 16
RATE = 300
"""Enrolments a second that are asked for while the engine is idle."""
SECONDS = 20
BUSY_RATE = 50
BUSY_BLOCKS, BUSY_SECONDS = 6, 20
"""Turns of each kind while the engine is busy."""
TOKENS = 64
FIRST_USES = 300
TENTHS = 10
WARM_UP, CLOSED = 500, 6000
FEWEST = (
    WARM_UP + CLOSED + RATE * SECONDS + CLIENTS
    + BUSY_BLOCKS * BUSY_RATE * BUSY_SECONDS + 2 * FIRST_USES + 1000
)  # fmt: skip
SERVER_CORE, CLIENT_CORE = sorted(os.sched_getaffinity(0))[:2]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--directions", type=Path, default=ROOT / ".demo" / "directions.safetensors"
    )
    parser.add_argument("--personas", type=int, default=100_000)
    parser.add_argument(
        "--store", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"]
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout")
    options = parser.parse_args()
    if options.personas < FEWEST:
        parser.error(f"--personas must be at least {FEWEST}: the turns before take most of them")
    prepare(options.directions)
    os.environ.update(ENVIRONMENT)
    result = {}
    for kind in options.store:
        os.sched_setaffinity(0, {CLIENT_CORE})
        with database(kind) as url:
            os.sched_setaffinity(0, {SERVER_CORE, CLIENT_CORE})
            with server(url, MODEL, "--palign-directions", str(options.directions)) as (base, _):
                os.sched_setaffinity(0, {CLIENT_CORE})
                result[kind] = asyncio.run(measure(base, options.personas))
        say(json.dumps(result[kind]))
    print(json.dumps(result) if options.json else table(result))
    return 0


def prepare(directions: Path) -> None:
    demo: list[str | Path] = [sys.executable, ROOT / "tools" / "demo_model.py", MODEL]
    subprocess.run(demo, check=True, stdout=sys.stderr)
    if not directions.exists():
        fit = Path(sys.executable).with_name("palign-fit")
        making: list[str | Path] = [fit, "directions", "--model", MODEL, "--out", directions]
        subprocess.run(making, check=True, stdout=sys.stderr)


class Clients:
    """Sends enrolments and questions, each client over a connection of its own."""

    def __init__(self, web: aiohttp.ClientSession, items: list[str]) -> None:
        self._web, self._items = web, items
        self._most = sum(2 * len(item) + 64 for item in items) + (16 << 10) - 64
        self._numbers = itertools.count()
        self._rng = random.Random(0)

    def people(self) -> Iterator[tuple[str, bytes]]:
        """Names that nobody has, and everybody's answers as a body."""
        for number in self._numbers:
            answers = zip(
                self._items, self._rng.choices(range(1, 6), k=len(self._items)), strict=True
            )
            yield f"user{number:06}", json.dumps({"answers": dict(answers)}).encode()

    async def enrol(self, name: str, body: bytes) -> None:
        headers = {"content-type": "application/json"}
        async with self._web.put(f"/v1/personas/{name}", data=body, headers=headers) as reply:
            assert reply.status == 201, await reply.text()
            await reply.read()

    async def junk(self) -> None:
        """The longest body that is read, and takes longest to be refused."""
        headers = {"content-type": "application/json"}
        body = b'{"answers": [' + b"[]," * (self._most // 3)
        async with self._web.put("/v1/personas/junk", data=body, headers=headers) as reply:
            assert reply.status == 400, await reply.text()
            await reply.read()

    async def ask(self, persona: str, tokens: int) -> None:
        body = {"model": "base", "prompt": [1, 2, 3, 4], "max_tokens": tokens, "temperature": 0,
                "ignore_eos": True, "persona": persona}  # fmt: skip
        async with self._web.post("/v1/completions", json=body) as reply:
            assert reply.status == 200, await reply.text()
            await reply.read()


async def measure(base: str, personas: int) -> dict[str, Any]:
    connections = aiohttp.TCPConnector(limit=3 * CLIENTS, keepalive_timeout=2)
    async with aiohttp.ClientSession(base, connector=connections) as web:
        async with web.get("/v1/questionnaire") as reply:
            items = [item["id"] for item in (await reply.json())["data"]]
        clients = Clients(web, items)
        family = processes(base)
        result: dict[str, Any] = {"items": len(items)}
        pin(family, engine=SERVER_CORE, front=SERVER_CORE)
        people = clients.people()
        await as_fast_as_possible(clients, list(itertools.islice(people, WARM_UP)))  # warm up
        say("as fast as they are answered")
        result["closed"] = await as_fast_as_possible(
            clients, list(itertools.islice(people, CLOSED))
        )
        say(f"{RATE} a second")
        paced = [clients.enrol(*person) for person in itertools.islice(people, RATE * SECONDS)]
        result["paced"] = percentiles(await at_a_rate(paced, RATE))
        pin(family, engine=SERVER_CORE, front=CLIENT_CORE)
        say(json.dumps(result))
        result["busy"] = await beside_answers(clients, people)
        result["first_use"] = await first_uses(clients, people)
        say(json.dumps(result))
        pin(family, engine=SERVER_CORE, front=SERVER_CORE)
        enrolled = int(next(people)[0][4:])
        result["until"] = await until(clients, people, personas - enrolled, family[0])
        return result


def processes(base: str) -> list[psutil.Process]:
    """The API server, and everything it has started."""
    port = urlsplit(base).port
    (pid,) = {
        found.pid
        for found in psutil.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN and found.laddr.port == port
    }
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def pin(family: list[psutil.Process], *, engine: int, front: int) -> None:
    for number, process in enumerate(family):
        for thread in process.threads():
            os.sched_setaffinity(thread.id, {engine if number else front})


async def as_fast_as_possible(
    clients: Clients, people: list[tuple[str, bytes]]
) -> dict[str, float]:
    """Each client sends its next when its last is answered."""
    waiting = iter(people)
    found: list[float] = []

    async def client() -> None:
        for person in waiting:
            found.append(await milliseconds(clients.enrol(*person)))

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return {"rate": len(people) / (time.perf_counter() - began), **percentiles(found)}


async def at_a_rate(calls: list[Coroutine[Any, Any, None]], rate: float) -> list[float]:
    """Milliseconds of each of ``calls``, made when its time has come, ``CLIENTS`` at once at most: to wait until one
    of these is answered counts."""
    free = asyncio.Semaphore(CLIENTS)

    async def one(call: Coroutine[Any, Any, None]) -> None:
        async with free:
            await call

    began = time.perf_counter()
    sent = []
    for number, call in enumerate(calls):
        await asyncio.sleep(began + number / rate - time.perf_counter())
        sent.append(asyncio.create_task(milliseconds(one(call))))
    return list(await asyncio.gather(*sent))


async def beside_answers(clients: Clients, people: Iterator[tuple[str, bytes]]) -> dict[str, Any]:
    """Tokens a second of ``CLIENTS`` steered requests at a time: in turns alone, beside enrolments, and beside as
    much junk."""
    asked = list(itertools.islice(people, CLIENTS))
    for person in asked:
        await clients.enrol(*person)
    rates: dict[str, list[float]] = {"alone": [], "enrolments": [], "junk": []}
    latencies: list[float] = []
    for block in range(BUSY_BLOCKS):
        kinds = list(rates)
        for kind in kinds[block % 3 :] + kinds[: block % 3]:
            stop = asyncio.Event()
            load = asyncio.create_task(answered(clients, asked, stop))
            if kind == "alone":
                await asyncio.sleep(BUSY_SECONDS)
            elif kind == "junk":
                junk = [clients.junk() for _ in range(BUSY_RATE * BUSY_SECONDS)]
                await at_a_rate(junk, BUSY_RATE)
            else:
                some = list(itertools.islice(people, BUSY_RATE * BUSY_SECONDS))
                latencies += await at_a_rate([clients.enrol(*person) for person in some], BUSY_RATE)
            stop.set()
            rates[kind].append(await load)
        say(f"beside answers: turn {block + 1} of {BUSY_BLOCKS}")
    return {
        "tokens_per_second": {kind: statistics.median(found) for kind, found in rates.items()},
        "of_alone": {
            kind: quartiles(
                [one / alone for one, alone in zip(rates[kind], rates["alone"], strict=True)]
            )
            for kind in ("enrolments", "junk")
        },
        "enrolment_ms": percentiles(latencies),
    }


def quartiles(values: list[float]) -> list[float]:
    return [float(value) for value in np.quantile(values, (0.25, 0.5, 0.75))]


async def answered(clients: Clients, people: list[tuple[str, bytes]], stop: asyncio.Event) -> float:
    """Tokens a second until ``stop``, the last requests' rest included."""
    count = 0

    async def client(name: str) -> None:
        nonlocal count
        while not stop.is_set():
            await clients.ask(name, TOKENS)
            count += TOKENS

    began = time.perf_counter()
    await asyncio.gather(*(client(name) for name, _ in people))
    return count / (time.perf_counter() - began)


async def first_uses(clients: Clients, people: Iterator[tuple[str, bytes]]) -> dict[str, Any]:
    """Milliseconds of an answer of one token by a persona enrolled just before, by one enrolled long before that
    nobody has asked for, and by one in use, in turn."""
    earlier = list(itertools.islice(people, FIRST_USES))
    for person in earlier:
        await clients.enrol(*person)
    found: dict[str, list[float]] = {"just enrolled": [], "first use": [], "in use": []}
    for old in earlier:
        new = next(people)
        await clients.enrol(*new)
        for kind, name in (("just enrolled", new[0]), ("first use", old[0]), ("in use", old[0])):
            found[kind].append(await milliseconds(clients.ask(name, 1)))
    return {kind: percentiles(values) for kind, values in found.items()}


async def until(
    clients: Clients, people: Iterator[tuple[str, bytes]], count: int, front: psutil.Process
) -> list[dict[str, float]]:
    """``count`` more personas, a tenth after the other."""
    tenths = []
    for tenth in range(TENTHS):
        some = list(itertools.islice(people, count // TENTHS))
        found = await as_fast_as_possible(clients, some)
        tenths.append({**found, "mib": front.memory_info().rss / 2**20})
        say(f"tenth {tenth + 1} of {count}: {tenths[-1]}")
    return tenths


async def milliseconds(call: Awaitable[None]) -> float:
    began = time.perf_counter()
    await call
    return (time.perf_counter() - began) * 1000


def table(result: dict[str, Any]) -> str:
    def both(found: dict[str, float]) -> str:
        return f"{found['p50']:.1f} / {found['p99']:.1f}"

    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        f"{CLIENTS} clients, enrolments/s": lambda found: f"{found['closed']['rate']:.0f}",
        "their time, ms (p50 / p99)": lambda found: both(found["closed"]),
        f"{RATE} enrolments/s, ms": lambda found: both(found["paced"]),
        f"{CLIENTS} steered requests, tokens/s": lambda found: (
            f"{found['busy']['tokens_per_second']['alone']:.1f}"
        ),
        **{
            f"of that beside {BUSY_RATE} {kind}/s (quartiles)": lambda found, kind=kind: (  # type: ignore[misc]
                "{1:.3f} ({0:.3f} to {2:.3f})".format(*found["busy"]["of_alone"][kind])
            )
            for kind in ("enrolments", "junk")
        },
        "these enrolments, ms": lambda found: both(found["busy"]["enrolment_ms"]),
        **{
            f"answer of 1 token, {kind}, ms": lambda found, kind=kind: both(
                found["first_use"][kind]
            )  # type: ignore[misc]
            for kind in ("just enrolled", "first use", "in use")
        },
        "first tenth: enrolments/s, MiB": lambda found: tenth(found["until"][0]),
        "last tenth": lambda found: tenth(found["until"][-1]),
    }

    def tenth(found: dict[str, float]) -> str:
        return f"{found['rate']:.0f}, {found['mib']:.0f}"

    lines = ["| | " + " | ".join(result) + " |", "|---" * (len(result) + 1) + "|"]
    for title, text in rows.items():
        lines.append(f"| {title} | " + " | ".join(text(found) for found in result.values()) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
