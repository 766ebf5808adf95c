"""One safetensors file with one canonical JSON header: what personas and directions are kept in.

Needs numpy and safetensors only.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from vllm_palign.errors import PalignError

_METADATA_KEY = "palign"
_DTYPES = {"I32": "<i4", "F32": "<f4"}
MAX_PARTS = 250_000
"""Lists, objects and members of objects in a header: JSON is read in one go, which holds up every thread, for two
seconds if 16 MiB were full of them. What palign-fit writes has some hundreds; long texts and lists of numbers are quick."""

Tensors = Mapping[str, tuple[str, int]]
"""Tensor name -> its safetensors dtype (I32 or F32) and rank."""


def digest_of(data: bytes) -> str:
    """sha256 of a file's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def pack(tensors: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any]) -> bytes:
    """The canonical file: the same content gives the same bytes in every process.

    Raises TypeError or ValueError for a header that is not JSON.
    """
    text = json.dumps(
        header, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    # One metadata key only: safetensors writes several in hash order, which differs by process.
    return safetensors.numpy.save(dict(tensors), metadata={_METADATA_KEY: text})


def unpack(
    data: bytes,
    source: str,
    *,
    name: str,
    version: int,
    wanted: Tensors,
    error: type[PalignError],
    remedy: str,
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """The tensors ``wanted``, dtypes and ranks checked, and the header of a file of format ``name``.

    ``source`` names the file in errors, ``remedy`` says how to get one of this version. Raises ``error``.
    """
    size = int.from_bytes(data[:8], "little")
    parts = sum(data.count(mark, 8, 8 + size) for mark in (b"[", b"{", b":"))
    # A longer header than the file is another kind of file, and called what it is.
    if parts > MAX_PARTS and size < len(data):
        raise error(
            f"{source}: its header holds {parts} lists, objects and members, wanted at most {MAX_PARTS}"
        )
    try:
        entries = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
        metadata = STRICT_JSON.decode(data[8 : 8 + size].decode("utf-8")).get("__metadata__")
    except Exception as problem:  # safetensors raises its own class, json and utf-8 theirs
        # Only now: a safetensors file may begin with any of these bytes, the header's length decides.
        known = _known_content(data)
        if known is not None:
            raise error(f"{source}: looks like {known}") from None
        raise error(f"{source}: is not a safetensors file: {problem}") from problem
    if not isinstance(metadata, dict) or set(metadata) != {_METADATA_KEY}:
        held = sorted(metadata) if isinstance(metadata, dict) else "none"
        raise error(f"{source}: metadata keys are {held}, wanted exactly one, {_METADATA_KEY!r}")
    try:
        header = STRICT_JSON.decode(metadata[_METADATA_KEY])
    except (ValueError, RecursionError) as problem:
        raise error(f"{source}: metadata {_METADATA_KEY!r} is not JSON: {problem}") from problem
    if not isinstance(header, dict):
        raise error(f"{source}: metadata {_METADATA_KEY!r} is {kind(header)}, wanted an object")
    if header.get("format") != name:
        raise error(f"{source}: format is {header.get('format')!r}, wanted {name!r}")
    found = header.get("format_version")
    if found != version or isinstance(found, (bool, float)):
        raise error(
            f"{source}: format_version is {found!r}, this release reads {version}; {remedy}"
        )
    problems = []
    if set(entries) != set(wanted):
        problems.append(f"tensors are {sorted(entries)}, wanted {sorted(wanted)}")
    for tensor in sorted(set(entries) & set(wanted)):
        dtype, rank = wanted[tensor]
        got = entries[tensor]
        if got["dtype"] != dtype or len(got["shape"]) != rank:
            problems.append(
                f"tensor {tensor!r} is {got['dtype']} {got['shape']}, wanted {dtype} of rank {rank}"
            )
    if problems:
        raise error(f"{source}: " + "; ".join(problems))
    return {
        tensor: np.frombuffer(entries[tensor]["data"], dtype=_DTYPES[dtype]).reshape(
            entries[tensor]["shape"]
        )
        for tensor, (dtype, _) in wanted.items()
    }, header


def header_problems(header: Mapping[str, Any], fields: Mapping[str, tuple[type, ...]]) -> list[str]:
    """Every one of ``fields`` (name -> its types) that ``header`` lacks or holds as something else."""
    return [
        f"header field {name!r} is missing"
        if name not in header
        else f"header field {name!r} is {kind(header[name])}, wanted "
        + " or ".join(one.__name__ for one in kinds)
        for name, kinds in fields.items()
        if name not in header
        or not isinstance(header[name], kinds)
        or isinstance(header[name], bool)
    ]


def read_bounded(path: Path, most: int, error: type[PalignError]) -> bytes:
    """The unchecked content of a file, whole or one byte more than ``most``. Raises ``error``, naming it."""
    try:
        with path.open("rb") as file:
            return file.read(most + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from problem


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
    if start.startswith(b"{"):
        return (
            "JSON, not safetensors; answers or trait values for a server are sent with the header "
            "Content-Type: application/json (curl --json)"
        )
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
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


STRICT_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
"""Refuses NaN, Infinity and repeated keys, with a ValueError. Fitting reads by it, too."""


def kind(value: object) -> str:
    """What ``value`` is, as errors say it."""
    return {"NoneType": "null", "dict": "an object", "list": "a list"}.get(
        type(value).__name__, f"{type(value).__name__} {str(value)[:40]!r}"
    )
