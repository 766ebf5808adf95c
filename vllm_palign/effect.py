"""What travels with a steered request to the worker: effective offsets, their identity, and the first token
they are added to.

An effect rides in the request's own ``SamplingParams.extra_args``, to whatever worker runs it: no worker
ever looks a persona up, so nothing can be missing there. The scheduler reads its KV identity from the same
place, so what tells blocks apart is what the worker does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from vllm_palign.errors import PersonaInvalid
from vllm_palign.persona import FloatArray, IntArray, Persona, Scope

SALT_PREFIX = "palign:"
"""Reserved beginning of a KV cache salt. Clients may not send it."""


SCOPES: list[Scope] = ["answers", "all"]


@dataclass(frozen=True)
class Effect:
    """What the worker reads: effective offsets for K' steered heads, and their identity.

    ``layers``, ``heads`` int32 [K'], ``offsets`` float32 [K', D] in activation units with strength,
    weights and alphas multiplied in. ``key`` is a sha256 over the digests, the scales and the
    offsets; equal keys mean equal effect, in KV blocks as in device slots.
    """

    key: str
    parts: tuple[tuple[str, float], ...]
    layers: IntArray
    heads: IntArray
    offsets: FloatArray

    @classmethod
    def compose(cls, personas: Sequence[tuple[Persona, float]]) -> Effect:
        """Add up ``scale * alpha * offsets`` over (persona, scale), in float64, in digest order."""
        rows: dict[tuple[int, int], Any] = {}
        for persona, scale in sorted(personas, key=lambda pair: pair[0].digest):
            scaled = persona.offsets.astype(np.float64) * (scale * persona.alpha)
            for layer, head, row in zip(
                persona.layers.tolist(), persona.heads.tolist(), scaled, strict=True
            ):
                rows[layer, head] = rows[layer, head] + row if (layer, head) in rows else row
        places = np.array(sorted(rows), dtype=np.int32)
        with np.errstate(over="ignore"):
            offsets = np.stack([rows[place] for place in sorted(rows)]).astype(np.float32)
        parts = tuple(sorted((persona.digest, scale) for persona, scale in personas))
        layers, heads = np.ascontiguousarray(places.T)
        return cls(_key(parts, layers, heads, offsets), parts, layers, heads, offsets)

    def pack(self, *, scope: Scope = "all", start: int = 0, kv_scope: str = "") -> Packed:
        """Plain values for ``extra_args``, which msgpack and pickle carry between vLLM's processes.

        ``start`` is the index in the sequence of the first token that is steered, prompt and answer counted
        together from 0; ``kv_scope`` whose steered KV blocks the request may meet ("": everybody's).
        """
        return Packed(
            key=self.key,
            scope=scope,
            start=start,
            kv_scope=kv_scope,
            parts=[list(part) for part in self.parts],
            layers=self.layers.tobytes(),
            heads=self.heads.tobytes(),
            offsets=self.offsets.tobytes(),
        )

    @classmethod
    def unpack(cls, value: object) -> Effect:
        """Read a packed effect and check its content against its key.

        Raises PersonaInvalid; on a worker that stops the engine, because a request got past admission.
        """
        if not is_packed(value):
            raise PersonaInvalid(
                f"a request reached the worker with {str(value)[:80]!r} instead of admitted offsets; "
                "it did not pass vLLM's InputProcessor"
            )
        layers = np.frombuffer(value["layers"], dtype=np.int32)
        heads = np.frombuffer(value["heads"], dtype=np.int32)
        offsets = np.frombuffer(value["offsets"], dtype=np.float32).reshape(len(layers), -1)
        parts = tuple((digest, scale) for digest, scale in value["parts"])
        if _key(parts, layers, heads, offsets) != value["key"]:
            raise PersonaInvalid("admitted offsets do not match their key: they changed on the way")
        return cls(value["key"], parts, layers, heads, offsets)


def first_steered(packed: Mapping[str, Any]) -> int:
    """Index in the sequence of the first token that a packed effect is added to.

    Raises PersonaInvalid where that is no index.
    """
    start = packed["start"]
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise PersonaInvalid(f"admitted offsets begin at token {start!r}, wanted an index")
    return start


def block_identity(packed: Mapping[str, Any], end: int) -> str | None:
    """What tells a KV block that ends before token ``end`` from the plain model's of the same tokens; None for
    a block wholly before the first steered token, which *is* the plain model's.

    The index is part of it: two requests whose first steered tokens differ have other KV in the block that
    holds them, under equal tokens, equal parents and one effect. From index 0 on, the salt says it.
    """
    start = first_steered(packed)
    if start == 0 or end <= start:
        return None
    return f"{packed['key']}:{start}:{packed['kv_scope']}"


def is_packed(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether ``value`` is what ``Effect.pack`` makes, as far as can be seen without reading it."""
    return isinstance(value, dict) and "offsets" in value


class Packed(dict[str, Any]):
    """A packed effect, of which dumps and logs show the key: vLLM prints all parameters of its running
    requests when an engine crashes, and offsets are somebody's personality, and megabytes."""

    def __repr__(self) -> str:
        return f"<palign effect {str(self.get('key'))[:12]}>"


def salted(client_salt: str | None, key: str, kv_scope: str = "") -> str:
    """The KV cache salt of a request that is steered from its first token on, or (``key`` "") of a tenant's
    plain one: blocks are shared only under the same persona content, inside the same tenant (``kv_scope``; ""
    for all) *and* under the same client salt."""
    mixed = hashlib.sha256(f"{key}\0{kv_scope}\0{client_salt or ''}".encode(errors="surrogatepass"))
    return SALT_PREFIX + mixed.hexdigest()


def _key(
    parts: tuple[tuple[str, float], ...], layers: IntArray, heads: IntArray, offsets: FloatArray
) -> str:
    content = hashlib.sha256(json.dumps(parts).encode())
    for array in (layers, heads, offsets):
        content.update(array.tobytes())
    return content.hexdigest()
