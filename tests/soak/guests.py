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
    """Whether all processes answer so, and none otherwise after a while. A kill in between excuses it."""
    await world.servers.up.wait()
    start, agreed = time.monotonic(), 0
    while agreed < IN_A_ROW:
        await world.servers.up.wait()
        if world.over:
            return False
        asked = time.monotonic()
        try:
            # A new connection each, which goes to the process with fewer.
            reply = await world.call(guest.key, "GET", "/v1/models", connection="close")
        except Lost:
            return False
        agreed = agreed + 1 if reply.status_code == status else 0
        late = asked - start > REVOKED_SECONDS and not world.servers.killed_since(start)
        if late and not agreed:
            what = f"{reply.status_code} instead of {status} after {asked - start:.0f} s"
            world.tally.note_wrong("a key that comes or goes", what)
            return False
        await asyncio.sleep(0.05)
    return True
