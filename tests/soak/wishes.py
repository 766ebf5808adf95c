"""Whom a request asks for, in which of the three places, and what must come of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.soak.names import Names
from tests.soak.tally import Wrong
from vllm_palign import Persona
from vllm_palign.persona import Scope


@dataclass(frozen=True)
class Wish:
    """``weights`` by persona name, empty for nobody; ``fields`` of the body that say so."""

    weights: dict[str, float]
    strength: float
    way: str
    fields: dict[str, Any]
    scope: Scope = "answers"

    def parts(
        self, header: str | None, names: Names, tenant: str, start: float, end: float
    ) -> list[tuple[Persona, float]]:
        """(persona, strength x weight) of the content that ``header`` says was applied. Raises Wrong if it
        is not what was asked for, or not what the names may have held between ``start`` and ``end``."""
        if not self.weights:
            if header is not None:
                raise Wrong(f"a plain request was answered with {header}")
            return []
        if header is None:
            raise Wrong(f"{self.fields} was answered without the header: plainly?")
        strength, scope, digests = _read(header, self.weights)
        if scope != self.scope:
            raise Wrong(f"{header}: asked for scope {self.scope}")
        if strength != self.strength:
            raise Wrong(f"{header}: asked for strength {self.strength!r}")
        parts = []
        for name, weight in self.weights.items():
            prefix = digests[name]
            possible = names.possible(tenant, name, start, end)
            if not any(digest is not None and digest.startswith(prefix) for digest in possible):
                raise Wrong(f"{header}: {tenant}'s {name} can only have held {possible}")
            persona = names.persona(prefix)
            assert persona is not None
            parts.append((persona, self.strength * weight))
        return parts


def choose(rng: random.Random, names: Sequence[str]) -> Wish:
    """One of ``names`` or a blend, at a random strength, asked for in a random place or in two."""
    kind = rng.random()
    if kind < 0.25:
        (name,), strength = rng.sample(names, 1), 1.0
        way, fields = rng.choice(
            [
                ("field", {"persona": name}),
                ("metadata", {"metadata": {"persona": name, "other": "x"}}),
                ("model", {"model": f"base@{name}"}),
                ("two places", {"model": f"base@{name}", "persona": {"id": name, "strength": 1}}),
            ]
        )
        return Wish({name: 1.0}, strength, way, fields)
    if kind < 0.7:
        (name,), strength = rng.sample(names, 1), rng.choice([rng.uniform(-2, 2), 0.0, -1.0, 2.0])
        scope: Scope = rng.choice(["answers", "all"])
        field = {"persona": {"id": name, "strength": strength, "scope": scope}}
        metadata = {
            "metadata": {
                "persona": name, "persona_strength": repr(strength), "persona_scope": scope,
            }
        }  # fmt: skip
        way, fields = rng.choice(
            [("field", field), ("metadata", metadata), ("two places", field | metadata)]
        )
        return Wish({name: 1.0}, strength, way, fields, scope)
    weights = {name: rng.uniform(-0.7, 0.7) for name in rng.sample(names, rng.randint(2, 4))}
    strength = rng.choice([0.5, 1.0, -1.0])
    blended: Scope = rng.choice(["answers", "all"])
    persona = {"mix": weights, "strength": strength, "scope": blended}
    return Wish(weights, strength, "field", {"persona": persona}, blended)


NOBODY = Wish({}, 1.0, "", {})


def _read(header: str, weights: dict[str, float]) -> tuple[float, str, dict[str, str]]:
    """Strength, scope and digest prefix by name. Raises Wrong if other names or weights are there."""
    listed, _, rest = header.partition(";strength=")
    strength, _, scope = rest.partition(";scope=")
    digests = {}
    for part in listed.split("+"):
        name, _, rest = part.partition("@")
        prefix, _, weight = rest.partition("*")
        if weights.get(name) != float(weight or 1) or len(prefix) != 12:
            raise Wrong(f"{header}: asked for {weights}")
        digests[name] = prefix
    if digests.keys() != weights.keys():
        raise Wrong(f"{header}: asked for {weights}")
    return float(strength), scope, digests
