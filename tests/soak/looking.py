"""Those who read and list."""

from __future__ import annotations

import random
import time

from tests.soak.names import OWN, SHARED, TENANTS
from tests.soak.tally import REFUSED, RIGHT, Deed, Wrong
from tests.soak.world import PERSONAS, World


def names_of(tenant: str) -> list[str]:
    return [*OWN, *SHARED, f"only-{tenant}", f"always-{tenant}"]


async def read(world: World, rng: random.Random, deed: Deed) -> str:
    deed.kind = "GET one"
    tenant = rng.choice(TENANTS)
    name = rng.choice(names_of(tenant))
    start = time.monotonic()
    reply = await world.call(world.keys[tenant], "GET", f"{PERSONAS}/{name}")
    seen = reply.json()["digest"] if reply.status_code == 200 else None
    if reply.status_code not in (200, 404):
        raise Wrong(f"{tenant}'s {name}: {reply.status_code} {reply.text[:300]}")
    possible = world.names.possible(tenant, name, start, time.monotonic())
    if seen not in possible:
        raise Wrong(f"{tenant}'s {name} is shown as {seen}, can only have held {possible}")
    return REFUSED if seen is None else RIGHT


async def look_through(world: World, rng: random.Random, deed: Deed) -> str:
    """All personas, page by page, or as models: what was there all the time, and nobody else's."""
    deed.kind = rng.choice(["GET all", "GET models"])
    tenant = rng.choice(TENANTS)
    start = time.monotonic()
    listed = await (_pages if deed.kind == "GET all" else _models)(world, rng, tenant)
    now = time.monotonic()
    possible = {name: world.names.possible(tenant, name, start, now) for name in names_of(tenant)}
    wrong = [
        name for name, digest in listed.items() if not _may_be(digest, possible.get(name, set()))
    ]
    missing = [name for name, held in possible.items() if None not in held and name not in listed]
    if wrong or missing:
        raise Wrong(f"{tenant} was shown {wrong} and not {missing}; {listed}; possible {possible}")
    return RIGHT


def _may_be(digest: str | None, possible: set[str | None]) -> bool:
    """None: the list of models says only that there is something."""
    return digest in possible if digest is not None else bool(possible - {None})


async def _pages(world: World, rng: random.Random, tenant: str) -> dict[str, str | None]:
    limit, after, found = rng.choice([3, 20]), "", {}
    while True:
        params = {"limit": limit, "after": after}
        reply = await world.call(world.keys[tenant], "GET", PERSONAS, params=params)
        page = reply.json()
        found |= {entry["id"]: entry["digest"] for entry in page["data"]}
        if not page["has_more"]:
            return found
        after = page["last_id"]


async def _models(world: World, rng: random.Random, tenant: str) -> dict[str, str | None]:
    reply = await world.call(world.keys[tenant], "GET", "/v1/models")
    base, *others = [model["id"] for model in reply.json()["data"]]
    if base != "base":
        raise Wrong(f"the first model is {base}")
    return {model.removeprefix("base@"): None for model in others}
