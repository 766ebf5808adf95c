"""The persona file: one subject's steered heads and their offsets, as safetensors bytes.

Letters used for shapes: K steered heads, D head_dim, L decoder layers, H query heads of the whole
model (before any tensor-parallel split). Needs numpy and safetensors only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from vllm_palign.errors import PersonaInvalid
from vllm_palign.files import write_bytes

FORMAT = "palign.persona"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"
MAX_FILE_BYTES = 16 * 1024 * 1024
ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

_METADATA_KEY = "palign"
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
        try:
            header = json.dumps(
                self.header,
                sort_keys=True,
                separators=(",", ":"),
                ensure_ascii=False,
                allow_nan=False,
            )
        except (TypeError, ValueError) as error:
            raise PersonaInvalid(f"persona {self.name!r}: header is not JSON: {error}") from error
        # One metadata key only: safetensors writes several in hash order, which differs by process.
        return safetensors.numpy.save(
            {"layers": self.layers, "heads": self.heads, "offsets": self.offsets},
            metadata={_METADATA_KEY: header},
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = "persona file") -> Persona:
        """Parse and check the bytes of a file; ``source`` names it in errors.

        Raises PersonaInvalid for everything the format does not allow.
        """
        if len(data) > MAX_FILE_BYTES:
            raise PersonaInvalid(
                f"{source}: holds {len(data)} bytes, wanted at most {MAX_FILE_BYTES} (16 MiB)"
            )
        tensors, header = _parse(bytes(data), source)
        problems = [
            f"header field {name!r} is missing"
            if name not in header
            else f"header field {name!r} is {_kind(header[name])}, wanted "
            + " or ".join(kind.__name__ for kind in kinds)
            for name, kinds in _HEADER_FIELDS.items()
            if name not in header
            or not isinstance(header[name], kinds)
            or isinstance(header[name], bool)
        ]
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


def digest_of(data: bytes) -> str:
    """sha256 of a persona file's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def load(path: str | os.PathLike[str]) -> Persona:
    """Read and check one persona file. Raises PersonaInvalid, naming the file."""
    return Persona.from_bytes(read_bytes(path), source=str(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The unchecked content of a persona file, whole or one byte more than is allowed.

    Raises PersonaInvalid, naming the file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise PersonaInvalid(f"{path}: cannot be read: {error.strerror or error}") from error


def save(persona: Persona, path: str | os.PathLike[str]) -> Path:
    """Write ``persona`` to ``path`` in one step: the file is there whole or not at all. Raises OSError."""
    path = Path(path)
    write_bytes(path, persona.to_bytes())
    return path


def _problems(persona: Persona) -> Iterable[str]:
    """Every rule of the format that the fields of ``persona`` break."""
    shape_ok = True
    for name in ("num_layers", "num_heads", "head_dim"):
        if getattr(persona, name) < 1:
            shape_ok = False
            yield f"{name} is {getattr(persona, name)}, wanted at least 1"
    if not math.isfinite(persona.alpha):
        yield f"alpha is {persona.alpha}, wanted a finite number"
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


def _parse(data: bytes, source: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """The tensors and the palign header of safetensors bytes, with names, dtypes and ranks checked."""
    try:
        entries = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        size = int.from_bytes(data[:8], "little")
        metadata = STRICT_JSON.decode(data[8 : 8 + size].decode("utf-8")).get("__metadata__")
    except Exception as error:  # safetensors raises its own class, json and utf-8 theirs
        # Only now: a safetensors file may begin with any of these bytes, the header's length decides.
        known = _known_content(data)
        if known is not None:
            raise PersonaInvalid(f"{source}: looks like {known}") from None
        raise PersonaInvalid(f"{source}: is not a safetensors file: {error}") from error
    if not isinstance(metadata, dict) or set(metadata) != {_METADATA_KEY}:
        held = sorted(metadata) if isinstance(metadata, dict) else "none"
        raise PersonaInvalid(
            f"{source}: metadata keys are {held}, wanted exactly one, {_METADATA_KEY!r}"
        )
    try:
        header = STRICT_JSON.decode(metadata[_METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise PersonaInvalid(
            f"{source}: metadata {_METADATA_KEY!r} is not JSON: {error}"
        ) from error
    if not isinstance(header, dict):
        raise PersonaInvalid(
            f"{source}: metadata {_METADATA_KEY!r} is {_kind(header)}, wanted an object"
        )
    if header.get("format") != FORMAT:
        raise PersonaInvalid(f"{source}: format is {header.get('format')!r}, wanted {FORMAT!r}")
    version = header.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, (bool, float)):
        raise PersonaInvalid(
            f"{source}: format_version is {version!r}, this release reads {FORMAT_VERSION}; "
            "upgrade vllm-palign or fit the persona again"
        )
    problems = []
    if set(entries) != set(_TENSORS):
        problems.append(f"tensors are {sorted(entries)}, wanted {sorted(_TENSORS)}")
    for name in sorted(set(entries) & set(_TENSORS)):
        dtype, rank = _TENSORS[name]
        got = entries[name]
        if got["dtype"] != dtype or len(got["shape"]) != rank:
            problems.append(
                f"tensor {name!r} is {got['dtype']} {got['shape']}, wanted {dtype} of rank {rank}"
            )
    if problems:
        raise PersonaInvalid(f"{source}: " + "; ".join(problems))
    tensors = {
        name: np.frombuffer(
            entries[name]["data"], dtype="<i4" if dtype == "I32" else "<f4"
        ).reshape(entries[name]["shape"])
        for name, (dtype, _) in _TENSORS.items()
    }
    return tensors, header


def _known_content(data: bytes) -> str | None:
    """What people and tools put in place of a persona file, and what to do, or None."""
    start = data[:1024].lstrip().lower()
    if data[:1] == b"\x80":
        return "a pickle, which is never opened; wanted safetensors (make one with palign-fit)"
    if data[:4] == b"PK\x03\x04":
        return (
            "a zip archive: a torch.save archive is a pickle, which is never opened; a shard of palign-fit "
            "is taken apart with palign-fit unpack"
        )
    if data[:2] == b"\x1f\x8b":
        return "a gzip file; unpack it first (gunzip)"
    if start.startswith(b"version https://git-lfs.github.com/"):
        return "a Git LFS pointer, not the file it stands for; fetch that with git lfs pull"
    if start.startswith((b"<!doctype html", b"<html")):
        return (
            "a web page, such as a login or error page that was saved in place of the download; "
            "download the file itself (on Hugging Face its URL has /resolve/, not /blob/)"
        )
    if start.startswith(b"--") and b"content-disposition: form-data" in start:
        return (
            "a form upload (multipart/form-data); send the file's bytes as the body "
            "(curl --data-binary @FILE, without -F)"
        )
    return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


STRICT_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
"""Refuses NaN, Infinity and repeated keys, with a ValueError. Fitting reads by it, too."""


def model_name(source: str) -> str:
    """What a model is called that is named, or lies, at ``source``: without its owner or folders.

    ``org/name``, ``/models/name/`` and the folder of a snapshot in the hub's cache are one name.
    """
    parts = source.replace("\\", "/").rstrip("/").split("/")
    if len(parts) >= 3 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].rpartition("--")[2]
    return parts[-1]


def _finite_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _kind(value: object) -> str:
    return {"NoneType": "null", "dict": "an object", "list": "a list"}.get(
        type(value).__name__, f"{type(value).__name__} {str(value)[:40]!r}"
    )
