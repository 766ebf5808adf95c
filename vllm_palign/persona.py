"""The persona file: one subject's steered heads and their offsets, as safetensors bytes.

Letters used for shapes: K steered heads, D head_dim, L decoder layers, H query heads of the whole
model (before any tensor-parallel split). Needs numpy and safetensors only.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vllm_palign.container import (
    digest_of,
    header_problems,
    kind,
    pack,
    read_bounded,
    unpack,
)
from vllm_palign.errors import PersonaInvalid
from vllm_palign.files import write_bytes

FORMAT = "palign.persona"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_COUNT = 2**31 - 1
"""Most layers, heads, or numbers of a head that a file may speak of."""
ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

_TENSORS = {"layers": ("I32", 1), "heads": ("I32", 1), "offsets": ("F32", 2)}
_HEADER_FIELDS: dict[str, tuple[type, ...]] = {
    "alpha": (int, float),
    "base_model": (str,),
    "description": (str,),
    "fit": (dict,),
    "format": (str,),
    "format_version": (int,),
    "head_dim": (int,),
    "method": (str,),
    "name": (str,),
    "num_heads": (int,),
    "num_layers": (int,),
}

Scope = Literal["answers", "all"]
"""Which tokens of a request are steered: from the first answer on, or the prompt too (the reference method)."""

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


def is_persona_id(text: object) -> bool:
    """Whether ``text`` may name a persona: ``[A-Za-z0-9][A-Za-z0-9._-]{0,127}``, ASCII."""
    return isinstance(text, str) and ID_PATTERN.fullmatch(text) is not None


@dataclass(frozen=True, eq=False)
class Persona:
    """One subject's offsets, checked on construction.

    ``layers`` int32 [K] and ``heads`` int32 [K] are 0-based, unique and sorted pairs; ``offsets``
    float32 [K, D] are in activation units (standard deviation of the projection times the unit
    direction) for alpha 1 and strength 1. Adding ``strength * alpha * offsets[k]`` to head
    ``heads[k]`` of the attention output projection's input in layer ``layers[k]`` is the reference
    method's ``o_proj.bias += W_o d`` (PAS, arXiv 2408.11779, section 3; PAlign/pas.py ``set_activate``).

    ``digest`` is the sha256 of the file's bytes, in hex; it identifies the persona.
    Raises PersonaInvalid, listing every problem found.
    """

    name: str
    layers: IntArray
    heads: IntArray
    offsets: FloatArray
    alpha: float
    base_model: str
    num_layers: int
    num_heads: int
    head_dim: int
    method: str = "pas"
    description: str = ""
    fit: dict[str, Any] = field(default_factory=dict)
    digest: str = ""

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise PersonaInvalid(f"persona {self.name!r} is not valid: " + "; ".join(problems))
        for name in ("layers", "heads", "offsets"):
            array = np.ascontiguousarray(getattr(self, name)).view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if not self.digest:
            object.__setattr__(self, "digest", digest_of(self.to_bytes()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Persona) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @functools.cached_property
    def peak(self) -> float:
        """Largest |alpha x offset|, in activation units: what strength 1 adds at most to any number."""
        return abs(self.alpha) * float(np.abs(self.offsets).max())

    @property
    def max_strength(self) -> float | None:
        """How strong a request may ask for it, as its file says in ``fit.max_strength``; None where it says
        nothing."""
        most = self.fit.get("max_strength")
        return None if most is None else float(most)

    @property
    def header(self) -> dict[str, Any]:
        """The metadata of the file."""
        return {
            "alpha": self.alpha,
            "base_model": self.base_model,
            "description": self.description,
            "fit": self.fit,
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "head_dim": self.head_dim,
            "method": self.method,
            "name": self.name,
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
        }

    def to_bytes(self) -> bytes:
        """The canonical file: the same persona gives the same bytes in every process."""
        tensors = {"layers": self.layers, "heads": self.heads, "offsets": self.offsets}
        try:
            return pack(tensors, self.header)
        except (TypeError, ValueError) as error:
            raise PersonaInvalid(f"persona {self.name!r}: header is not JSON: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = "persona file") -> Persona:
        """Parse and check the bytes of a file; ``source`` names it in errors.

        Raises PersonaInvalid for everything the format does not allow.
        """
        if len(data) > MAX_FILE_BYTES:
            raise PersonaInvalid(
                f"{source}: holds {len(data)} bytes, wanted at most {MAX_FILE_BYTES} (16 MiB)"
            )
        tensors, header = unpack(
            bytes(data),
            source,
            name=FORMAT,
            version=FORMAT_VERSION,
            wanted=_TENSORS,
            error=PersonaInvalid,
            remedy="upgrade vllm-palign or fit the persona again",
        )
        problems = header_problems(header, _HEADER_FIELDS)
        if problems:
            raise PersonaInvalid(f"{source}: " + "; ".join(problems))
        try:
            fields: dict[str, Any] = {
                name: header[name]
                for name in _HEADER_FIELDS
                if name not in ("format", "format_version")
            }
            fields["alpha"] = _finite_float(header["alpha"])
            return cls(**fields | tensors, digest=digest_of(data))
        except PersonaInvalid as error:
            raise PersonaInvalid(f"{source}: {error.message}") from None


def load(path: str | os.PathLike[str]) -> Persona:
    """Read and check one persona file. Raises PersonaInvalid, naming the file."""
    return Persona.from_bytes(read_bytes(path), source=str(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The unchecked content of a persona file, whole or one byte more than is allowed.

    Raises PersonaInvalid, naming the file.
    """
    return read_bounded(Path(path), MAX_FILE_BYTES, PersonaInvalid)


def save(persona: Persona, path: str | os.PathLike[str]) -> Path:
    """Write ``persona`` to ``path`` in one step: the file is there whole or not at all. Raises OSError."""
    path = Path(path)
    write_bytes(path, persona.to_bytes())
    return path


def _problems(persona: Persona) -> Iterable[str]:
    """Every rule of the format that the fields of ``persona`` break."""
    shape_ok = True
    for name in ("num_layers", "num_heads", "head_dim"):
        if not 1 <= getattr(persona, name) <= MAX_COUNT:
            shape_ok = False
            bound = "at least 1" if getattr(persona, name) < 1 else f"at most {MAX_COUNT}"
            yield f"{name} is {str(getattr(persona, name))[:40]}, wanted {bound}"
    if not math.isfinite(persona.alpha):
        yield f"alpha is {persona.alpha}, wanted a finite number"
    if "max_strength" in persona.fit and not _is_bound(persona.fit["max_strength"]):
        yield (
            f"fit.max_strength is {kind(persona.fit['max_strength'])}, wanted a finite number greater than 0; "
            "leave it out where nothing bounds the strength"
        )
    layers, heads, offsets = persona.layers, persona.heads, persona.offsets
    for name, dtype, rank in (
        ("layers", "int32", 1),
        ("heads", "int32", 1),
        ("offsets", "float32", 2),
    ):
        array = getattr(persona, name)
        if array.dtype != dtype or array.ndim != rank:
            shape_ok = False
            yield f"{name} is {array.dtype} of rank {array.ndim}, wanted {dtype} of rank {rank}"
    if not shape_ok:
        return
    count = len(layers)
    if len(heads) != count or len(offsets) != count:
        yield f"layers, heads and offsets hold {count}, {len(heads)} and {len(offsets)} rows, wanted as many each"
        return
    most = persona.num_layers * persona.num_heads
    if not 1 <= count <= most:
        yield f"{count} steered heads, wanted 1 to {most} (num_layers x num_heads)"
        return
    if offsets.shape[1] != persona.head_dim:
        yield f"offsets are {offsets.shape[1]} wide, wanted head_dim {persona.head_dim}"
    for name, array, end in (
        ("layers", layers, persona.num_layers),
        ("heads", heads, persona.num_heads),
    ):
        wrong = array[(array < 0) | (array >= end)]
        if len(wrong):
            yield f"{name} holds {int(wrong[0])}, wanted 0 to {end - 1}"
    # int64, because layer * num_heads may leave int32 when the header lies.
    order = layers.astype(np.int64) * max(persona.num_heads, int(heads.max()) + 1) + heads
    step = np.diff(order)
    if (step == 0).any():
        at = int(np.argmax(step == 0))
        yield f"layer {layers[at]} head {heads[at]} is there twice, wanted unique pairs"
    if (step < 0).any():
        at = int(np.argmax(step < 0)) + 1
        yield f"pairs are not sorted: layer {layers[at]} head {heads[at]} comes too late"
    if not np.isfinite(offsets).all():
        yield "offsets hold NaN or Inf, wanted finite numbers"
    elif math.isfinite(persona.alpha):
        with np.errstate(over="ignore"):
            if not np.isfinite(np.float32(persona.alpha) * offsets).all():
                yield f"alpha {persona.alpha} x offsets overflows float32"


def model_name(source: str) -> str:
    """What a model is called that is named, or lies, at ``source``: without its owner or folders.

    ``org/name``, ``/models/name/`` and the folder of a snapshot in the hub's cache are one name.
    """
    parts = source.replace("\\", "/").rstrip("/").split("/")
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].rpartition("--")[2]
    return parts[-1]


def _is_bound(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return 0 < _finite_float(value) < math.inf


def _finite_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
