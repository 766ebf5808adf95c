"""What evaluate and judge share: who is measured, with which files, and showing it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from palign_fit.errors import InputError
from palign_fit.inputs.answers import Subject
from palign_fit.inputs.files import write_text
from palign_fit.methods.settings import MIN_ANSWERED
from vllm_palign.persona import Persona, load

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel


def listed(text: str) -> tuple[str, ...]:
    """The names of a comma-separated option."""
    return tuple(dict.fromkeys(one.strip() for one in text.split(",") if one.strip()))


def sample(subjects: Sequence[Subject], count: int | None, seed: int) -> tuple[list[Subject], str]:
    """``count`` subjects drawn with ``seed``, in file order, and how they were chosen."""
    if count is not None and count < 1:
        raise InputError(f"--subjects {count}: wanted at least 1")
    places = np.arange(len(subjects))
    chosen = f"all of {len(subjects)}"
    if count is not None and count < len(subjects):
        drawn = np.random.default_rng(seed).choice(len(subjects), count, replace=False)
        places = np.sort(drawn)
        chosen = f"{count} of {len(subjects)}, drawn with seed {seed}"
    people = [subjects[int(at)] for at in places]
    empty = [one.id for one in people if one.answered < MIN_ANSWERED]
    if len(empty) == len(people):
        raise InputError(f"{len(empty)} subjects, none with {MIN_ANSWERED} answers or more")
    if empty:
        chosen += f"; {len(empty)} left out with fewer than {MIN_ANSWERED} answers"
    return [one for one in people if one.answered >= MIN_ANSWERED], chosen


def personas_of(folder: Path, subjects: Sequence[Subject]) -> list[Persona]:
    """The file of every subject. Raises InputError naming those that have none."""
    paths = [folder / f"{subject.id}.safetensors" for subject in subjects]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"--personas {folder}: {len(missing)} of {len(paths)} files are not there, such as "
            f"{missing[0]}; palign-fit run --out {folder} writes one a subject"
        )
    return [load(path) for path in paths]


def check_made_for(model: OpenedModel, personas: Sequence[Persona]) -> list[str]:
    """Refuse personas of another shape before anything is measured. Returns warnings: of another model,
    by its name, and of this shape."""
    from palign_fit.model.steer import check_shape

    for one in personas:
        check_shape(model, one)
    last = [one.base_model.rstrip("/").rpartition("/")[2] for one in personas]
    others = sorted(set(last) - {model.base_model.rstrip("/").rpartition("/")[2]})
    if not others:
        return []
    return [
        f"personas were fitted on {', '.join(others)[:80]}, measured is {model.base_model} of the same "
        "shape: directions of another model may mean nothing here"
    ]


def check_target(path: Path | None) -> None:
    """Refuse a report's place before any work is done."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InputError(f"--markdown {path}: wanted a file in a folder that is there")


def show(report: dict[str, Any], markdown: Path | None, as_json: bool) -> None:
    """Write and print a finished report."""
    from rich.console import Console

    from palign_fit.evaluation import tables

    if markdown is not None:
        write_text(markdown, tables.markdown(report))
    if as_json:
        print(json.dumps(report))
    else:
        Console(highlight=False).print(tables.terminal(report))
