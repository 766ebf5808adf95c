"""What all who take part share."""

from __future__ import annotations

import asyncio
import math
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import TINY
from tests.personas import random_persona
from tests.soak.judge import Judge
from tests.soak.names import OPERATOR, TENANTS, Names
from tests.soak.questions import Prompt
from tests.soak.servers import Servers
from tests.soak.tally import Lost, Tally
from vllm_palign import Persona

PERSONAS = "/v1/personas"


@dataclass
class Guest:
    """A key of a tenant that comes and goes."""

    key: str
    revoked: float = math.inf
    """When its removal from the tenants file began."""


@dataclass
class World:
    servers: Servers
    names: Names
    tally: Tally
    judge: Judge
    prompts: Sequence[Prompt]
    tenants: Path
    keys: dict[str, str] = field(default_factory=dict)
    """API key by tenant; ``acme-use`` may only ask."""
    guests: list[Guest] = field(default_factory=list)
    """Further keys of ``TENANTS[0]``."""
    other_shape: bytes = b""
    """A persona of a model that is not served."""
    secret: str = ""
    """Digest of globex's persona."""
    over: bool = False
    _seed: int = 0

    def key(self, rng: random.Random, tenant: str) -> Guest:
        """One of the tenant's keys, at random."""
        guests = [guest for guest in self.guests if guest.revoked == math.inf]
        if tenant == TENANTS[0] and guests and rng.random() < 0.3:
            return rng.choice(guests)
        return Guest(self.keys[tenant])

    async def call(
        self, key: str, method: str, path: str, *, connection: str = "keep-alive", **options: Any
    ) -> httpx.Response:
        """Raises Lost for a broken connection and for errors that only a kill explains."""
        headers = {"authorization": f"Bearer {key}", "connection": connection}
        try:
            reply = await self.servers.web.request(method, path, headers=headers, **options)
        except httpx.TransportError as error:
            raise Lost(f"{method} {path}: {error!r}") from error
        if reply.status_code >= 500:
            raise Lost(f"{method} {path}: {reply.status_code} {reply.text[:300]}")
        return reply

    def new_persona(self, rng: random.Random) -> Persona:
        """Never seen before."""
        self._seed += 1
        persona = random_persona(
            self._seed, **TINY, steered=6, scale=rng.uniform(0.1, 0.6), name=f"s{self._seed}"
        )
        self.names.remember(persona)
        return persona

    async def pause(self, seconds: float) -> None:
        """Shorter when all is over."""
        for _ in range(round(10 * seconds)):
            if self.over:
                return
            await asyncio.sleep(0.1)

    async def palign(self, *arguments: str) -> str:
        """What the ``palign`` command prints."""
        command = [str(Path(sys.executable).with_name("palign")), *arguments]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode().strip()

    async def new_key(self, tenant: str, *options: str) -> str:
        return await self.palign(
            "tenants", "new-key", tenant, "--file", str(self.tenants), *options
        )

    async def look_at_all(self) -> int:
        """After a restart: each name of each owner holds what was acknowledged, or a change that was
        never answered and took place all the same. Raises AssertionError. How many names there are."""
        for (owner, name), held in self.names.of.items():
            reply = await self.call(self.keys[owner], "GET", f"{PERSONAS}/{name}")
            facts = reply.json()
            # What is seen may be the operator's, when the owner has none.
            own = reply.status_code == 200 and (owner == OPERATOR or not facts["shared"])
            digest = facts["digest"] if own else None
            if not held.found(digest):
                self.tally.note_wrong("after a restart", f"{owner}'s {name} holds {digest}")
            else:
                self.tally.count("after a restart", "right")
        return len(self.names.of)
