"""Keys that come and go while the server runs."""

from __future__ import annotations

import asyncio
import random
import time

from tests.soak.asking import REVOKED_SECONDS
from tests.soak.names import TENANTS
from tests.soak.tally import RIGHT, Lost
from tests.soak.world import Guest, World

IN_A_ROW = 10
"""Answers, so that both API server processes have spoken."""


async def come_and_go(world: World, rng: random.Random) -> None:
    """A new key counts within seconds, and a revoked one stops within seconds, for good."""
    while not world.over:
        guest = Guest(await world.new_key(TENANTS[0]))
        if not await _agreed(world, guest, 200):
            continue
        world.tally.count("a new key", RIGHT)
        world.guests.append(guest)
        await world.pause(rng.uniform(5, 20))
        guest.revoked = time.monotonic()
        key_id = guest.key.split("_")[1]
        await world.palign("tenants", "revoke", key_id, "--file", str(world.tenants))
        if await _agreed(world, guest, 401):
            world.tally.count("a revoked key", RIGHT)
        world.guests.remove(guest)
        await world.pause(rng.uniform(5, 20))


async def _agreed(world: World, guest: Guest, status: int) -> bool:
    """Whether all processes answer so in time. A kill in between excuses it."""
    await world.servers.up.wait()
    start, agreed = time.monotonic(), 0
    while time.monotonic() < start + REVOKED_SECONDS or world.servers.killed_since(start):
        await world.servers.up.wait()
        if world.over:
            return False
        try:
            # A new connection each, which goes to the process with fewer.
            reply = await world.call(guest.key, "GET", "/v1/models", connection="close")
        except Lost:
            return False
        agreed = agreed + 1 if reply.status_code == status else 0
        if agreed == IN_A_ROW:
            return True
        await asyncio.sleep(0.05)
    world.tally.note_wrong("a key that comes or goes", f"no {status} after {REVOKED_SECONDS} s")
    return False
