"""What evaluate and judge share: who is measured, with which files, and showing it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from palign_fit.commands import options
from palign_fit.commands.common import inventory_of, opened_model
from palign_fit.errors import InputError
from palign_fit.evaluation.client import IN_FLIGHT
from palign_fit.inputs.answers import Subject, read_answers
from palign_fit.inputs.files import write_text
from palign_fit.progress import Progress
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.scores import MIN_ANSWERED
from vllm_palign.persona import Persona, load

if TYPE_CHECKING:
    from palign_fit.evaluation.tasks import Backend
    from palign_fit.model.model import OpenedModel


@dataclass(frozen=True)
class People:
    """Who is measured, in which words chosen, on which items; ``train``: ids that may be learned from, None
    if that was not said; ``files``: everybody's persona, None if none were given."""

    items: Inventory
    subjects: list[Subject]
    chosen: str
    train: frozenset[str] | None
    files: list[Persona] | None
    notes: Sequence[str]

    @classmethod
    def read(
        cls,
        answers: Path,
        inventory: Path | None,
        subjects: int | None,
        seed: int,
        train_items: Path | None,
        personas: Path | None,
    ) -> People:
        """What the options name. Raises InputError."""
        from palign_fit.evaluation.split import read_train_items

        items = inventory_of(inventory)
        sheets = read_answers(answers, items)
        people, chosen = sample(sheets, subjects, seed)
        train = read_train_items(train_items, items) if train_items else None
        files = personas_of(personas, people) if personas else None
        return cls(items, people, chosen, train, files, sheets.notes)

    def sign(self, report: dict[str, Any], warnings: Sequence[str], seconds: float) -> None:
        """Put into ``report`` who was measured, what to know about it, and how long it took."""
        report["settings"]["subjects"] = self.chosen
        report["warnings"] += [*warnings, *self.notes]
        report["seconds"] = round(seconds, 2)


def listed(text: str) -> tuple[str, ...]:
    """The names of a comma-separated option."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def sample(subjects: Sequence[Subject], count: int | None, seed: int) -> tuple[list[Subject], str]:
    """``count`` subjects drawn with ``seed``, in file order, and how they were chosen."""
    if count is not None and count < 1:
        raise InputError(f"--subjects {count}: wanted at least 1")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}, wanted 0 to {2**32 - 1}")
    places = np.arange(len(subjects))
    chosen = f"all of {len(subjects)}"
    if count is not None and count < len(subjects):
        drawn = np.random.default_rng(seed).choice(len(subjects), count, replace=False)
        places = np.sort(drawn)
        chosen = f"{count} of {len(subjects)}, drawn with seed {seed}"
    people = [subjects[int(place)] for place in places]
    empty = [subject.id for subject in people if subject.answered < MIN_ANSWERED]
    if len(empty) == len(people):
        raise InputError(f"{len(empty)} subjects, none with {MIN_ANSWERED} answers or more")
    if empty:
        chosen += f"; {len(empty)} left out with fewer than {MIN_ANSWERED} answers"
    return [subject for subject in people if subject.answered >= MIN_ANSWERED], chosen


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
    """Refuse personas of another shape before anything is measured. Returns warnings: of another model of
    this shape."""
    from palign_fit.model.chats import foreign_models
    from palign_fit.model.steer import check_shape

    for persona in personas:
        check_shape(model, persona)
    others = foreign_models(model, personas)
    if not others:
        return []
    return [
        f"personas were fitted on {', '.join(others)[:80]}, measured is {model.base_model} of the same "
        "shape: directions of another model may mean nothing here"
    ]


def open_backend(
    model: str,
    personas: Sequence[Persona],
    progress: Progress,
    *,
    device: options.Device,
    dtype: options.Dtype,
    memory: float | None,
    server: str | None,
    api_key: str | None,
    strength: float,
    in_flight: int = IN_FLIGHT,
    texts: int = 0,
) -> tuple[Backend, OpenedModel | None, list[str]]:
    """What runs the model, the model if it runs in this process, and warnings about ``personas``. ``texts``: sentences
    whose gradients it is to hold."""
    if server is not None:
        from palign_fit.evaluation.server import ServerBackend

        served = ServerBackend(
            server, model, api_key=api_key, strength=strength, in_flight=in_flight
        )
        return served, None, []
    from palign_fit.evaluation.huggingface import HuggingFaceBackend

    opened = opened_model(progress, model, device, dtype, memory=memory, texts=texts)
    return HuggingFaceBackend(opened, strength), opened, check_made_for(opened, personas)


def show(report: dict[str, Any], markdown: Path | None, as_json: bool) -> None:
    """Write and print a finished report."""
    from rich.console import Console

    from palign_fit.evaluation import tables
    from palign_fit.reporting.speech_plot import recognition_against_damage

    # First what cannot fail: it took hours.
    if as_json:
        print(json.dumps(report))
    else:
        Console(highlight=False).print(tables.terminal(report))
    if markdown is not None:
        text, plot = tables.markdown(report), recognition_against_damage(report.get("speech") or {})
        if plot is not None:
            picture = markdown.with_suffix(".svg")
            write_text(picture, plot)
            text += f"\n![Recognition against damage]({quote(picture.name)})\n"
        write_text(markdown, text)
