"""Those who try to get at others, or to break the server: one of the attempts of ``test_security``."""

from __future__ import annotations

import random

import httpx

from tests.http.tenants.attempts import ATTEMPTS
from tests.soak.tally import REFUSED, Deed, Lost, Wrong
from tests.soak.world import World


async def attack(world: World, rng: random.Random, deed: Deed) -> str:
    deed.kind = "attempt on another tenant or the server"
    name = rng.choice(list(ATTEMPTS))
    attempt = ATTEMPTS[name]
    request = attempt.request(world.servers.server.url, world.keys, world.secret)
    try:
        reply = await world.servers.web.request(**request)
    except httpx.TransportError as error:
        raise Lost(f"{name}: {error!r}") from error
    if reply.status_code >= 500:
        raise Lost(f"{name}: {reply.status_code} {reply.text[:300]}")
    code = reply.json()["error"]["code"]
    if reply.status_code != attempt.status or attempt.code not in (None, code):
        raise Wrong(f"{name}: {reply.status_code} {reply.text[:300]}")
    return REFUSED
