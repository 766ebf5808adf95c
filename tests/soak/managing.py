"""Those who put, replace, read and remove personas, and upload what is none."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.hostile_files import HOSTILE
from tests.soak.names import OPERATOR, OWN, SHARED, TENANTS, Name
from tests.soak.tally import LEFT, REFUSED, RIGHT, Deed, Lost, Wrong
from tests.soak.world import PERSONAS, World


class _Cut(Exception):
    """The client's connection breaks."""


def _somebody(rng: random.Random) -> tuple[str, str]:
    """(owner, name) of a persona that may be changed. The operator's are replaced, never removed."""
    if rng.random() < 0.1:
        return OPERATOR, rng.choice(SHARED)
    return rng.choice(TENANTS), rng.choice(OWN)


async def put(
    world: World, owner: str, name: str, data: Any, *, replace: bool = False
) -> httpx.Response:
    params = {"replace": "true"} if replace else {}
    path = f"{PERSONAS}/{name}"
    return await world.call(world.keys[owner], "PUT", path, content=data, params=params)


async def upload(world: World, rng: random.Random, deed: Deed) -> str:
    """New, the same again, other bytes without leave, or replaced."""
    owner, name = _somebody(rng)
    held = world.names.of[owner, name]
    async with held.writing:
        if not held.settled:
            raise Lost("nobody knows what the name holds")
        if held.holds is None:
            deed.kind = "PUT, new"
            return await _change(world, rng, owner, name, 201)
        choice = rng.random()
        if choice < 0.15:
            deed.kind = "PUT, the same again"
            persona = world.names.persona(held.holds)
            assert persona is not None
            _expect(await put(world, owner, name, persona.to_bytes()), 200)
            return RIGHT
        if choice < 0.3:
            deed.kind = "PUT over another without replace"
            data = world.new_persona(rng).to_bytes()
            _expect(await put(world, owner, name, data), 409, "persona_exists")
            return REFUSED
        deed.kind = "PUT, replacing"
        return await _change(world, rng, owner, name, 200)


async def _change(world: World, rng: random.Random, owner: str, name: str, status: int) -> str:
    held = world.names.of[owner, name]
    # The same bytes under the roof of two tenants are two personas.
    others = [world.names.of[tenant, other].holds for tenant in TENANTS for other in OWN]
    twins = [digest for digest in others if digest not in (None, held.holds)]
    persona = world.names.persona(rng.choice(twins)) if twins and rng.random() < 0.1 else None
    persona = persona or world.new_persona(rng)
    held.change(persona.digest)
    reply = await put(world, owner, name, persona.to_bytes(), replace=status == 200)
    _expect(reply, status)
    if reply.json()["digest"] != persona.digest:
        raise Wrong(f"PUT of {persona.digest} was answered {reply.text[:300]}")
    held.acknowledged()
    return RIGHT


async def remove(world: World, rng: random.Random, deed: Deed) -> str:
    owner, name = rng.choice(TENANTS), rng.choice(OWN)
    held = world.names.of[owner, name]
    async with held.writing:
        if not held.settled:
            raise Lost("nobody knows what the name holds")
        there = held.holds is not None
        deed.kind = "DELETE" if there else "DELETE of nothing"
        if there:
            held.change(None)
        reply = await world.call(world.keys[owner], "DELETE", f"{PERSONAS}/{name}")
        if not there:
            _expect(reply, 404, "persona_not_found")
            return REFUSED
        _expect(reply, 204)
        held.acknowledged()
        return RIGHT


async def break_off(world: World, rng: random.Random, deed: Deed) -> str:
    """Half a persona file, then nothing: the name keeps what it held."""
    deed.kind = "PUT that breaks off"
    owner, name = _somebody(rng)
    held = world.names.of[owner, name]

    async def half() -> AsyncIterator[bytes]:
        data = world.new_persona(rng).to_bytes()
        yield data[: rng.randrange(1, len(data))]
        raise _Cut

    async with held.writing:
        if not held.settled:
            raise Lost("nobody knows what the name holds")
        try:
            await put(world, owner, name, half(), replace=True)
        except _Cut:
            await _must_hold(world, owner, name, held)
            return LEFT
        raise Wrong("half an upload was answered")


async def _must_hold(world: World, owner: str, name: str, held: Name) -> None:
    reply = await world.call(world.keys[owner], "GET", f"{PERSONAS}/{name}")
    own = reply.status_code == 200 and (owner == OPERATOR or not reply.json()["shared"])
    if (reply.json()["digest"] if own else None) != held.holds:
        raise Wrong(f"{owner}'s {name} holds {reply.text[:300]}, not {held.holds}")


async def upload_hostile(world: World, rng: random.Random, deed: Deed) -> str:
    """A file that breaks a rule, or one of another shape. Should it be taken, the next answer shows it."""
    deed.kind = "PUT of what is no persona"
    owner, name = _somebody(rng)
    fault = rng.choice([*HOSTILE, "other shape"])
    data = HOSTILE[fault][0] if fault in HOSTILE else world.other_shape
    reply = await put(world, owner, name, data, replace=True)
    code = reply.json().get("error", {}).get("code")
    if reply.status_code not in (400, 413) or code not in (
        "persona_invalid",
        "persona_incompatible",
    ):
        raise Wrong(f"{fault}: {reply.status_code} {reply.text[:300]}")
    return REFUSED


def _expect(reply: httpx.Response, status: int, code: str | None = None) -> None:
    """Raises Wrong."""
    found = reply.json()["error"]["code"] if code and reply.status_code >= 400 else None
    if (reply.status_code, found) != (status, code):
        raise Wrong(
            f"{reply.request.method} {reply.request.url.path}: wanted {status} {code}, got "
            f"{reply.status_code} {reply.text[:300]}"
        )
