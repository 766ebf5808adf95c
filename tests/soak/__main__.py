"""An hour of mixed traffic with kills, every answer checked: ``make soak``.

    python -m tests.soak [--minutes N] [--seed N] [--json]

A real server (tiny random model, float32, two API server processes, tenants, SQLite) on loopback. Eight
clients at a time ask on all three endpoints with and without personas, leave, put, replace, remove, list,
attack; keys come and go; processes are killed, and the server is started again over the same
registry. Every token of every answer is compared with plain Hugging Face, every persona header with what
the name may have held at that moment. Exit 0: nothing was wrong and memory stayed flat. Exit 1
otherwise, with the first wrong answers and the folder of the server's logs. Where not everything of
``report.HAPPENS`` has happened when the time is over, it goes on, thrice as long or six minutes at most.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.conftest import ENVIRONMENT, ROOT, TINY, build_tiny_model
from tests.http.tenants.tenancy import RIGHTS
from tests.personas import random_persona
from tests.soak import asking, attacking, guests, looking, managing, report
from tests.soak.judge import Judge
from tests.soak.names import OPERATOR, TENANTS, Names
from tests.soak.questions import prompts
from tests.soak.servers import KILLS, Servers
from tests.soak.tally import LOST, Deed, Lost, Tally, Wrong
from tests.soak.world import World

CLIENTS = 8
MOST_REQUESTS = 500_000
MOST_WRONG = 20
SAMPLE_SECONDS = 5.0
LONGEST = 3
PATIENCE = 360.0
"""Times as long as was asked for, or seconds, whichever is more, if by then not everything has happened."""

DEEDS: dict[Callable[[World, random.Random, Deed], Awaitable[str]], int] = {
    asking.ask: 64,
    asking.ask_and_leave: 8,
    asking.ask_in_vain: 5,
    managing.upload: 10,
    managing.remove: 3,
    managing.break_off: 1,
    managing.upload_hostile: 2,
    looking.read: 2,
    looking.look_through: 1,
    attacking.attack: 4,
}
"""How often each is done, in hundredths."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout")
    options = parser.parse_args()
    # vLLM, whose detokenizer the judge uses, logs to stdout by itself.
    os.environ.update(ENVIRONMENT, VLLM_LOGGING_STREAM="ext://sys.stderr")
    # Ended from outside, the server ends too: it has a session of its own.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="palign-soak-"))
    result = asyncio.run(soak(folder, 60 * options.minutes, options.seed))
    print(json.dumps(result) if options.json else report.table(result))
    if not result["wrong"] and not result["leaks"]:
        shutil.rmtree(folder)
        return 0
    for what in result["wrong"][:MOST_WRONG]:
        say(f"wrong: {what}")
    for life in result["leaks"]:
        say(f"memory grew in life {life['life']:.0f} by {life['growth_mib']:.0f} MiB")
    say(f"the server's logs are in {folder}")
    return 1


async def soak(folder: Path, seconds: float, seed: int) -> dict[str, Any]:
    say("a tiny model, keys, a server")
    world = make_world(folder)
    servers, tally = world.servers, world.tally
    await make_keys(world)
    try:
        await servers.start()
        await first_personas(world, random.Random(seed))
        servers.up.set()
        start = time.monotonic()
        crowd = Crowd(world, seed)
        watchers = [
            asyncio.create_task(watch(world, start)),
            asyncio.create_task(guests.come_and_go(world, random.Random(f"{seed}: guests"))),
        ]
        for at, kind in schedule(seconds):
            await until(world, start + at)
            if world.over:
                break
            await kill_and_restart(world, crowd, kind)
        await until(world, start + seconds)
        await until_all_was_seen(world, start + max(LONGEST * seconds, PATIENCE))
        world.over = True
        await crowd.gone()
        await asyncio.gather(*watchers)
        await world.look_at_all()
        complaints(world)
    finally:
        await servers.stop()
    return report.result(tally, servers.samples, servers.kills, time.monotonic() - start)


def make_world(folder: Path) -> World:
    demo = ROOT / ".demo" / "SmolLM2-135M-Instruct"
    subprocess.run(
        [sys.executable, ROOT / "tools" / "demo_model.py", demo], check=True, stdout=sys.stderr
    )
    model, tenants = folder / "tiny-llama", folder / "tenants.yaml"
    build_tiny_model(model, demo)
    more = "".join(f"  {tenant}: {{shared: [lent, open]}}\n" for tenant in TENANTS)
    tenants.write_text(RIGHTS + more)
    tally = Tally()
    world = World(
        Servers(model, folder, tenants),
        Names(),
        tally,
        Judge(model, tally),
        prompts(model),
        tenants,
    )
    world.other_shape = random_persona(0, **{**TINY, "num_layers": 2}, steered=4).to_bytes()
    return world


async def make_keys(world: World) -> None:
    for tenant in (OPERATOR, *TENANTS, "acme", "globex"):
        world.keys[tenant] = await world.new_key(tenant, "--role", "manage")
    world.keys["acme-use"] = await world.new_key("acme")


async def first_personas(world: World, rng: random.Random) -> None:
    """What is there from the beginning, and never removed."""
    fixed = [
        (OPERATOR, "lent"),
        (OPERATOR, "open"),
        (OPERATOR, "kept"),
        ("acme", "own"),
        ("globex", "secret"),
    ]
    fixed += [(tenant, f"{word}-{tenant}") for tenant in TENANTS for word in ("only", "always")]
    for owner, name in fixed:
        held, persona = world.names.of[owner, name], world.new_persona(rng)
        held.change(persona.digest)
        reply = await managing.put(world, owner, name, persona.to_bytes())
        assert reply.status_code == 201, reply.text
        held.acknowledged()
    secret = world.names.of["globex", "secret"].holds
    assert secret is not None
    world.secret = secret


class Crowd:
    """The clients: each does one thing after the other."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._busy = 0
        self._tasks = [
            asyncio.create_task(self._client(random.Random(f"{seed}: client {number}")))
            for number in range(CLIENTS)
        ]

    async def gone(self) -> None:
        await asyncio.gather(*self._tasks)

    async def idle(self) -> None:
        """Until nothing is under way; to be awaited while the server is down."""
        while self._busy:
            await asyncio.sleep(0.05)

    async def _client(self, rng: random.Random) -> None:
        while not self._world.over:
            await self._world.servers.up.wait()
            (deed,) = rng.choices(list(DEEDS), list(DEEDS.values()))
            self._busy += 1
            try:
                await self._do(deed, rng)
            finally:
                self._busy -= 1

    async def _do(self, do: Callable[..., Awaitable[str]], rng: random.Random) -> None:
        tally, start = self._world.tally, time.monotonic()
        deed = Deed(do.__name__.replace("_", " "))
        try:
            outcome = await do(self._world, rng, deed)
            tally.count(deed.kind, outcome)
        except Lost as error:
            if self._world.servers.killed_since(start):
                tally.count(deed.kind, LOST)
            else:
                tally.note_wrong(deed.kind, f"no answer: {error}")
        except Wrong as error:
            tally.note_wrong(deed.kind, str(error))
        except Exception as error:  # an answer of a form that nobody reckoned with
            where = traceback.extract_tb(error.__traceback__)[-1]
            tally.note_wrong(deed.kind, f"{error!r} in {where.name}, line {where.lineno}")


def schedule(seconds: float) -> list[tuple[float, str]]:
    """When which process is killed. The last life is the longest, for the sake of the memory."""
    kinds = KILLS if seconds > 900 else KILLS[:1]
    return [(seconds / 2 * (number + 1) / len(kinds), kind) for number, kind in enumerate(kinds)]


def complaints(world: World) -> None:
    """Whatever clients do, nothing in the server raises unhandled."""
    log = world.servers.log(world.servers.life).read_text(errors="replace")
    count = log.count("Traceback (most recent call last)")
    if count:
        name = world.servers.log(world.servers.life).name
        world.tally.note_wrong("the server's log", f"{count} tracebacks in {name}")


async def kill_and_restart(world: World, crowd: Crowd, kind: str) -> None:
    say(f"killing: {kind}")
    complaints(world)
    try:
        await world.servers.kill(kind)
    except Wrong as error:
        world.tally.note_wrong("kill", str(error))
    await crowd.idle()
    await world.servers.start()
    count = await world.look_at_all()
    say(f"started again; {count} names looked at")
    world.servers.up.set()


async def until(world: World, moment: float) -> None:
    """Until then, or until it is no use to go on."""
    while time.monotonic() < moment:
        tally = world.tally
        if tally.total >= MOST_REQUESTS or len(tally.wrong) >= MOST_WRONG:
            world.over = True
        if world.over:
            return
        await asyncio.sleep(0.2)


async def until_all_was_seen(world: World, moment: float) -> None:
    """On a slow machine less happens in the same time."""
    while time.monotonic() < moment and not world.over:
        if not report.missing(world.tally, world.servers.samples):
            return
        await until(world, min(moment, time.monotonic() + SAMPLE_SECONDS))


async def watch(world: World, start: float) -> None:
    """Memory every few seconds, a line every minute."""
    minute = 1
    while not world.over:
        await world.pause(SAMPLE_SECONDS)
        if world.servers.up.is_set():
            world.servers.sample(world.tally.total)
        if time.monotonic() - start > 60 * minute:
            minute += 1
            say(report.progress(time.monotonic() - start, world.tally, world.servers.samples))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
