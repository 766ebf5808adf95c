"""The persona files of a folder, read one by one: what the page keeps of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from palign_fit.errors import InputError
from palign_fit.output.folder import SUFFIX
from palign_fit.reporting.card import head_rows
from palign_fit.reporting.record import FitRecord, number, text
from vllm_palign.errors import PersonaInvalid
from vllm_palign.persona import Persona, load

MAX_PERSONAS = 1000
"""Most rows of the overview."""

MAX_DETAILED = 300
"""Most personas with pictures; a page with more is slow to open."""

MAX_HEADS = 600
"""Most heads kept of one persona, the hardest steered; a map holds no more that can be told apart."""

MAX_DRAWN = 60_000
"""Most heads drawn in all, which keeps the page below some 25 MB."""

_MAX_UNREADABLE = 20


@dataclass(frozen=True)
class Head:
    """One steered head: ``norm`` of alpha x offset in activation units, ``score`` as recorded."""

    layer: int
    head: int
    norm: float
    score: float | None


@dataclass(frozen=True)
class Entry:
    """One persona file. ``id`` is the file's name without suffix, ``heads`` at most MAX_HEADS."""

    id: str
    path: Path
    name: str
    description: str
    digest: str
    method: str
    base_model: str
    alpha: float
    num_layers: int
    num_heads: int
    head_dim: int
    steered: int
    steered_layers: int
    heads: tuple[Head, ...]
    record: FitRecord

    @classmethod
    def of(cls, persona: Persona, path: Path) -> Entry:
        with np.errstate(over="ignore"):  # of a norm beyond float32, shown as 0
            heads = [
                Head(layer, head, norm if np.isfinite(norm) else 0.0, number(score))
                for layer, head, norm, score in head_rows(persona)
            ]
        strongest = sorted(heads, key=lambda one: (-one.norm, one.layer, one.head))[:MAX_HEADS]
        return cls(
            id=path.name.removesuffix(SUFFIX),
            path=path,
            name=text(persona.name) or "(no name)",
            description=text(persona.description, 500),
            digest=persona.digest,
            method=text(persona.method, 40),
            base_model=text(persona.base_model),
            alpha=persona.alpha,
            num_layers=persona.num_layers,
            num_heads=persona.num_heads,
            head_dim=persona.head_dim,
            steered=len(heads),
            steered_layers=len({one.layer for one in heads}),
            heads=tuple(sorted(strongest, key=lambda one: (one.layer, one.head))),
            record=FitRecord.read(persona.fit),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.num_layers, self.num_heads, self.head_dim


@dataclass(frozen=True)
class Sources:
    """What a folder holds. ``detailed``: so many of the first entries get pictures. ``unreadable``:
    (file name, what is wrong). ``left_out`` in sentences."""

    entries: tuple[Entry, ...]
    detailed: int
    unreadable: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]


def read_folder(folder: Path) -> Sources:
    """All persona files of ``folder`` in the order of their names. Raises InputError if none can be read."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder; wanted one with persona files (ID{SUFFIX})")
    paths = sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith("."))
    if not paths:
        shards = (
            " (palign-fit unpack takes them out of shards)" if any(folder.glob("*.zip")) else ""
        )
        raise InputError(f"{folder}: holds no persona file, wanted ID{SUFFIX}{shards}")
    entries: list[Entry] = []
    unreadable: list[tuple[str, str]] = []
    for path in paths[:MAX_PERSONAS]:
        try:
            entries.append(Entry.of(load(path), path))
        except PersonaInvalid as error:
            problem = error.message.removeprefix(f"{path}: ")
            unreadable.append((text(path.name, 140), text(problem, 300)))
    if not entries:
        name, problem = unreadable[0]
        raise InputError(f"{folder}: none of {len(paths)} files is a persona; {name}: {problem}")
    drawn = np.cumsum([len(entry.heads) for entry in entries[:MAX_DETAILED]])
    detailed = int((drawn <= MAX_DRAWN).sum())
    return Sources(
        tuple(entries),
        detailed,
        tuple(unreadable[:_MAX_UNREADABLE]),
        tuple(_left_out(len(entries), detailed, len(paths), len(unreadable))),
    )


def _left_out(entries: int, detailed: int, files: int, unreadable: int) -> Iterator[str]:
    if files > MAX_PERSONAS:
        yield (
            f"{files - MAX_PERSONAS} of {files} files are not in this page: it takes the first "
            f"{MAX_PERSONAS} by name"
        )
    if entries > detailed:
        yield (
            f"pictures and tables of {entries - detailed} personas: drawn for the first {detailed} "
            "by name"
        )
    if unreadable:
        yield f"{unreadable} file(s) that are no persona"
