"""A real server with tenants, two API server processes, and everybody's keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
from typer.testing import CliRunner

from tests.conftest import TINY, TINY_SERVER, Server, start_server, stop_server
from tests.directions import tiny_directions
from tests.personas import random_persona
from vllm_palign import Persona
from vllm_palign.cli.main import app
from vllm_palign.directions import to_bytes

RIGHTS = """\
shared: {lent: {}, open: {share_kv: true}, kept: {}}
tenants:
  acme: {shared: [lent, open], max_strength: 2.0, max_personas: 3}
  globex: {shared: [lent, open]}
  operator: {}
"""
"""``lent`` and ``open`` are the operator's and given to both tenants, ``kept`` to nobody."""


@dataclass
class Tenancy:
    """``keys``: acme, globex and operator may manage; ``acme-use`` may only ask."""

    server: Server
    file: Path
    keys: dict[str, str]
    personas: dict[str, Persona]

    def call(self, who: str | None, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.keys[who]}"} if who else {}
        headers |= options.pop("headers", {})
        return httpx.request(
            method, self.server.url + path, headers=headers, timeout=120, **options
        )

    def complete(self, who: str | None, **fields: Any) -> httpx.Response:
        body = {"model": "base", "prompt": "Hello there", "max_tokens": 2, "temperature": 0}
        return self.call(who, "POST", "/v1/completions", json={**body, **fields})

    def put(self, who: str, name: str, persona: str, **params: Any) -> httpx.Response:
        data = self.personas[persona].to_bytes()
        return self.call(who, "PUT", f"/v1/personas/{name}", content=data, params=params)

    def openai(self, who: str) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.server.url}/v1", api_key=self.keys[who], max_retries=0
        )

    def log(self, event: str) -> list[dict[str, Any]]:
        """Audit lines so far."""
        return [
            json.loads(line)
            for line in self.server.log.read_text().splitlines()
            if line.startswith("{") and f'"event": "{event}"' in line
        ]


def new_key(file: Path, tenant: str, *options: str) -> str:
    result = CliRunner().invoke(app, ["tenants", "new-key", tenant, "--file", str(file), *options])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@contextmanager
def running_tenancy(model: Path, folder: Path) -> Iterator[Tenancy]:
    file = folder / "tenants.yaml"
    file.write_text(RIGHTS)
    keys = {
        name: new_key(file, name, "--role", "manage") for name in ("acme", "globex", "operator")
    }
    keys["acme-use"] = new_key(file, "acme")
    personas = {
        f"p{seed}": random_persona(seed, **TINY, steered=6, scale=0.5, name=f"p{seed}")
        for seed in range(8)
    }
    directions = folder / "directions.safetensors"
    directions.write_bytes(to_bytes(tiny_directions(**TINY)))
    server = start_server(
        model, folder / "server.log", "--plugin", "palign", "--palign-tenants", str(file),
        "--palign-directions", str(directions), "--api-server-count", "2", *TINY_SERVER,
    )  # fmt: skip
    tenancy = Tenancy(server, file, keys, personas)
    try:
        for name, persona in (("lent", "p0"), ("open", "p1"), ("kept", "p2")):
            assert tenancy.put("operator", name, persona).status_code == 201
        assert tenancy.put("globex", "secret", "p3").status_code == 201
        assert tenancy.put("acme", "own", "p4").status_code == 201
        yield tenancy
    finally:
        stop_server(server)
