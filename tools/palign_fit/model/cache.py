"""Results that depend on no subject, kept on disk by content: activations, gradients, likelihoods.

One entry is one safetensors file named by the sha256 of its key. It is written whole or not at all and
checked when read; a broken one is computed again. A cache that cannot be used never stops a fit. To
clear it, delete the folder (``palign-fit run --help`` shows which).
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from palign_fit.model import checkpoint
from palign_fit.model.model import OpenedModel, model_dtype
from vllm_palign.files import replacing

Arrays = dict[str, npt.NDArray[Any]]

MAX_BYTES = 8 * 2**30
"""All entries together; the ones used longest ago go first."""

SUFFIX = ".safetensors"
_CHECK = "palign_fit"


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/palign-fit``, or the same below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification wants relative paths ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "palign-fit"


def key_digest(key_parts: Mapping[str, Any]) -> str:
    """sha256 in hex of ``key_parts`` as canonical JSON. Raises TypeError for what is not JSON."""
    text = json.dumps(key_parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode()).hexdigest()


class Cache:
    """A folder of entries; ``folder`` None computes everything anew."""

    def __init__(self, folder: Path | None, max_bytes: int = MAX_BYTES) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    def load_or_compute(
        self, key_parts: Mapping[str, Any], compute: Callable[[], Arrays]
    ) -> Arrays:
        """The arrays stored under ``key_parts``, or those of ``compute``, which are stored then.

        ``key_parts`` must name everything the arrays depend on: the model's ``checkpoint.digest``,
        dtype and device kind, every text, and a version of the computation itself.
        """
        found = self.find(key_parts)
        if found is None:
            found = compute()
            self.keep(key_parts, found)
        return found

    def find(self, key_parts: Mapping[str, Any]) -> Arrays | None:
        """The arrays stored under ``key_parts``, None where there are none."""
        if self.folder is None:
            return None
        return self._read(self.folder / f"{key_digest(key_parts)}{SUFFIX}")

    def keep(self, key_parts: Mapping[str, Any], arrays: Arrays) -> None:
        """Store ``arrays`` under ``key_parts``."""
        if self.folder is not None:
            self._write(self.folder / f"{key_digest(key_parts)}{SUFFIX}", arrays)

    def _read(self, path: Path) -> Arrays | None:
        try:
            with path.open("rb") as file:
                size = struct.unpack("<Q", file.read(8))[0]
                header = json.loads(file.read(min(size, 2**20)))
            arrays = safetensors.numpy.load_file(path)
            if header["__metadata__"][_CHECK] != _content(arrays):
                raise ValueError("its content is not what was written")
            # The time of use decides which entry goes first when the cache is full.
            os.utime(path)
        except FileNotFoundError:
            return None
        except Exception as error:  # safetensors raises its own class, files and JSON theirs
            warnings.warn(
                f"cache: {path.name} is broken ({error}); computing it again", stacklevel=3
            )
            return None
        return arrays

    def _write(self, path: Path, arrays: Arrays) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
            with replacing(path) as part:
                safetensors.numpy.save_file(whole, part, metadata={_CHECK: _content(whole)})
            self._trim(path)
        except OSError as error:
            warnings.warn(f"cache: {path.parent} cannot be used: {error}", stacklevel=3)

    def _trim(self, newest: Path) -> None:
        """Delete entries, the longest unused first, until the rest is within ``max_bytes``."""
        assert self.folder is not None
        entries = []
        for path in self.folder.glob(f"*{SUFFIX}*"):
            with contextlib.suppress(OSError):  # another process may be trimming as well
                entries.append((path.stat().st_mtime, path.stat().st_size, path))
        used = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if used <= self.max_bytes:
                break
            if path != newest:
                path.unlink(missing_ok=True)
                used -= size


@dataclass(frozen=True)
class ModelCache:
    """The entries of one model; with ``cache`` None everything is computed anew. ``checkpoint`` is its content's digest."""

    cache: Cache | None
    checkpoint: str
    dtype: str
    device: str

    @classmethod
    def of(cls, model: OpenedModel, cache: Cache) -> ModelCache:
        """Of ``model`` as it is on disk."""
        content = checkpoint.digest(model, cache.folder)
        return cls(cache, content, model_dtype(model), model.device.type)

    @classmethod
    def none(cls, model: OpenedModel) -> ModelCache:
        """For whoever does not say what ``model`` is."""
        return cls(None, "", model_dtype(model), model.device.type)

    def load_or_compute(
        self, what: str, key_parts: Mapping[str, Any], compute: Callable[[], Arrays]
    ) -> Arrays:
        """As ``Cache.load_or_compute``; ``what`` names the computation and its version."""
        if self.cache is None:
            return compute()
        of_model = {"checkpoint": self.checkpoint, "dtype": self.dtype, "device": self.device}
        return self.cache.load_or_compute({"what": what, **of_model, **key_parts}, compute)


def _content(arrays: Arrays) -> str:
    """sha256 of names, dtypes, shapes and bytes."""
    digest = sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
