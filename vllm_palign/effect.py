"""What travels with a steered request to the worker: effective offsets and their identity.

An effect rides in the request's own ``SamplingParams.extra_args``, to whatever worker runs it: no worker
ever looks a persona up, so nothing can be missing there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from vllm_palign.errors import PersonaInvalid
from vllm_palign.persona import FloatArray, IntArray, Persona

SALT_PREFIX = "palign:"
"""Reserved beginning of a KV cache salt. Clients may not send it."""


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

    def pack(self) -> Packed:
        """Plain values for ``extra_args``, which msgpack and pickle carry between vLLM's processes."""
        return Packed(
            key=self.key,
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


def is_packed(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether ``value`` is what ``Effect.pack`` makes, as far as can be seen without reading it."""
    return isinstance(value, dict) and "offsets" in value


class Packed(dict[str, Any]):
    """A packed effect, of which dumps and logs show the key: vLLM prints all parameters of its running
    requests when an engine crashes, and offsets are somebody's personality, and megabytes."""

    def __repr__(self) -> str:
        return f"<palign effect {str(self.get('key'))[:12]}>"


def salted(client_salt: str | None, key: str, kv_scope: str = "") -> str:
    """The KV cache salt of a request: blocks are shared only under the same persona content, inside the
    same tenant (``kv_scope``; "" for all) *and* under the same client salt."""
    mixed = hashlib.sha256(f"{key}\0{kv_scope}\0{client_salt or ''}".encode(errors="surrogatepass"))
    return SALT_PREFIX + mixed.hexdigest()


def _key(
    parts: tuple[tuple[str, float], ...], layers: IntArray, heads: IntArray, offsets: FloatArray
) -> str:
    content = hashlib.sha256(json.dumps(parts).encode())
    for array in (layers, heads, offsets):
        content.update(array.tobytes())
    return content.hexdigest()
