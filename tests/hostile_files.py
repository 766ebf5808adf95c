"""Persona files that break any rule, for ``test_persona`` and for whoever attacks a server with them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from typing import Any

import numpy as np

from vllm_palign.persona import MAX_FILE_BYTES

HEADER: dict[str, Any] = {
    "alpha": 4.0,
    "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "description": "Ünïcode",
    "fit": {"seed": 0, "from the future": [1]},
    "format": "palign.persona",
    "format_version": 1,
    "head_dim": 2,
    "method": "pas",
    "name": "alice",
    "num_heads": 3,
    "num_layers": 4,
}
TENSORS = {
    "layers": np.array([0, 0, 3], np.int32),
    "heads": np.array([0, 2, 1], np.int32),
    "offsets": np.array([[1, 2], [3, 4], [5, 6]], np.float32),
}
_NAMES = {"int32": "I32", "float32": "F32", "int64": "I64", "float64": "F64", "float16": "F16"}


def pack(
    tensors: dict[str, np.ndarray] | None = None,
    header: Any = None,
    metadata: dict[str, str] | None = None,
    **changes: Any,
) -> bytes:
    """A safetensors file written by hand, so that it can break any rule."""
    fields = {**HEADER, **changes} if header is None else header
    entries: dict[str, Any] = {
        "__metadata__": {
            "palign": json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        }
        if metadata is None
        else metadata
    }
    data = b""
    for name, array in (TENSORS if tensors is None else tensors).items():
        end = len(data) + array.nbytes
        entries[name] = {
            "dtype": _NAMES[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [len(data), end],
        }
        data += array.tobytes()
    head = json.dumps(entries, ensure_ascii=False).encode()
    return struct.pack("<Q", len(head)) + head + data


def changed(**arrays: np.ndarray | None) -> bytes:
    tensors = {**TENSORS, **arrays}
    return pack({name: array for name, array in tensors.items() if array is not None})


def without(field: str) -> bytes:
    return pack(header={key: value for key, value in HEADER.items() if key != field})


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    return buffer.getvalue()


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


ints, floats = np.int32, np.float32
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "not a safetensors file"),
    "text": (b"hello, this is no tensor file", "not a safetensors file"),
    "pickle": (pickle.dumps(TENSORS), "pickle"),
    "torch.save archive": (zipped(), "pickle"),
    "shard of palign-fit": (zipped(), "palign-fit unpack"),
    "gzip": (gzip.compress(pack()), "a gzip file; unpack it first"),
    "Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 6321\n",
        "a Git LFS pointer, not the file it stands for",
    ),
    "answers": (b' {"answers": {"q1": 5}}', "JSON, not safetensors"),
    "web page": (b"\n<!DOCTYPE html><html><title>Sign in</title>", "a web page"),
    "large web page": (b"<!DOCTYPE html>" + b"a:" * 300_000, "a web page"),
    "web page without a doctype": (b"<html lang='en'>", "a web page"),
    "form upload": (
        b'--x1\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + pack(),
        "a form upload (multipart/form-data); send the file's bytes",
    ),
    "header length beyond the file": (struct.pack("<Q", 1 << 40) + b"{}", "not a safetensors file"),
    "header is no JSON": (struct.pack("<Q", 8) + b"{nonsens", "not a safetensors file"),
    "cut off": (pack()[:-3], "not a safetensors file"),
    "bytes appended": (pack() + b"x", "not a safetensors file"),
    "larger than 16 MiB": (pack() + b"\0" * MAX_FILE_BYTES, "16 MiB"),
    "no metadata": (pack(metadata={}), "metadata"),
    "two metadata keys": (pack(metadata={"palign": json.dumps(HEADER), "x": ""}), "exactly one"),
    "other metadata key": (pack(metadata={"format": "pt"}), "exactly one"),
    "metadata is no JSON": (pack(metadata={"palign": "{"}), "not JSON"),
    "metadata is a list": (pack(metadata={"palign": "[]"}), "wanted an object"),
    "metadata nested without end": (pack(metadata={"palign": deep(100_000)}), "not JSON"),
    "metadata of half a million lists": (
        pack(fit={"x": [[]] * 500_000}),
        "lists, objects and members, wanted at most 250000",
    ),
    "metadata of half a million members": (
        pack(fit={str(one): 1 for one in range(500_000)}),
        "lists, objects and members, wanted at most 250000",
    ),
    "metadata with NaN": (pack(alpha=float("nan")), "not JSON"),
    "metadata with a key twice": (pack(metadata={"palign": '{"a":1,"a":2}'}), "twice"),
    "unknown format": (pack(format="lora"), "format is"),
    "format missing": (without("format"), "format is"),
    "unknown format_version": (pack(format_version=2), "format_version"),
    "format_version true": (pack(format_version=True), "format_version"),
    "format_version 1.0": (pack(format_version=1.0), "format_version"),
    "format_version missing": (without("format_version"), "format_version"),
    "alpha missing": (without("alpha"), "'alpha' is missing"),
    "alpha text": (pack(alpha="4"), "'alpha'"),
    "alpha true": (pack(alpha=True), "'alpha'"),
    "alpha beyond float": (pack(alpha=10**400), "alpha"),
    "alpha overflows float32": (pack(alpha=1e39), "overflows"),
    "base_model null": (pack(base_model=None), "'base_model'"),
    "description number": (pack(description=1), "'description'"),
    "fit a list": (pack(fit=[]), "'fit'"),
    "max_strength zero": (pack(fit={"max_strength": 0}), "fit.max_strength is int '0'"),
    "max_strength negative": (pack(fit={"max_strength": -1.5}), "greater than 0"),
    "max_strength true": (pack(fit={"max_strength": True}), "fit.max_strength is bool 'True'"),
    "max_strength text": (pack(fit={"max_strength": "2"}), "fit.max_strength is str '2'"),
    "max_strength null": (pack(fit={"max_strength": None}), "fit.max_strength is null"),
    "max_strength NaN": (pack(fit={"max_strength": float("nan")}), "not JSON"),
    "max_strength beyond float": (pack(fit={"max_strength": 10**400}), "fit.max_strength is int"),
    "method missing": (without("method"), "'method' is missing"),
    "name a number": (pack(name=7), "'name'"),
    "head_dim float": (pack(head_dim=2.0), "'head_dim'"),
    "head_dim zero": (pack(head_dim=0), "head_dim is 0"),
    "head_dim other than the offsets'": (pack(head_dim=4), "2 wide, wanted head_dim 4"),
    "num_layers negative": (pack(num_layers=-4), "num_layers is -4"),
    "num_heads text": (pack(num_heads="3"), "'num_heads'"),
    "offsets missing": (changed(offsets=None), "tensors are"),
    "tensor too many": (changed(extra=np.zeros(1, floats)), "tensors are"),
    "layers int64": (changed(layers=TENSORS["layers"].astype(np.int64)), "I64"),
    "offsets float16": (changed(offsets=TENSORS["offsets"].astype(np.float16)), "F16"),
    "offsets float64": (changed(offsets=TENSORS["offsets"].astype(np.float64)), "F64"),
    "heads of rank 2": (changed(heads=TENSORS["heads"][None]), "rank 1"),
    "offsets of rank 1": (changed(offsets=TENSORS["offsets"].ravel()), "rank 2"),
    "fewer heads than layers": (changed(heads=TENSORS["heads"][:2]), "as many each"),
    "fewer offsets than layers": (changed(offsets=TENSORS["offsets"][:2]), "as many each"),
    "nothing steered": (
        changed(
            layers=np.zeros(0, ints), heads=np.zeros(0, ints), offsets=np.zeros((0, 2), floats)
        ),
        "0 steered heads",
    ),
    "more heads than the model has": (
        changed(
            layers=np.zeros(13, ints),
            heads=np.arange(13, dtype=ints),
            offsets=np.ones((13, 2), floats),
        ),
        "13 steered heads",
    ),
    "layer index too large": (changed(layers=np.array([0, 0, 4], ints)), "layers holds 4"),
    "layer index negative": (changed(layers=np.array([-1, 0, 3], ints)), "layers holds -1"),
    "head index too large": (changed(heads=np.array([0, 3, 1], ints)), "heads holds 3"),
    "head index negative": (changed(heads=np.array([-2, 2, 1], ints)), "heads holds -2"),
    "a pair twice": (changed(heads=np.array([2, 2, 1], ints)), "twice"),
    "pairs not sorted": (changed(layers=np.array([3, 0, 0], ints)), "not sorted"),
    "NaN": (changed(offsets=np.array([[1, np.nan], [3, 4], [5, 6]], floats)), "NaN or Inf"),
    "Inf": (changed(offsets=np.array([[1, 2], [3, -np.inf], [5, 6]], floats)), "NaN or Inf"),
}
"""Fault: the file, and words that its refusal must contain."""
