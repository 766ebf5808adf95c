"""palign-fit evaluate: how well personas fit people on answers they were not made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from palign_fit.answers import Subject, read_answers
from palign_fit.commands.common import (
    Device,
    Dtype,
    InventoryOption,
    JsonOption,
    quiet_transformers,
    with_exit_codes,
)
from palign_fit.errors import InputError
from palign_fit.files import write_text
from palign_fit.fit import MIN_ANSWERED
from palign_fit.inventory import built_in, read_inventory
from vllm_palign.persona import Persona, load

if TYPE_CHECKING:
    from palign_fit.evaluation.evaluate import Progress
    from palign_fit.evaluation.tasks import Backend, Tick


@with_exit_codes
def evaluate(
    model: Annotated[str, typer.Option(help="Hugging Face name or checkpoint folder.")],
    answers: Annotated[Path, typer.Option(help="Answers: JSON, JSONL or CSV.")],
    personas: Annotated[
        Path | None, typer.Option(help="Folder of ID.safetensors; without it they are fitted here.")
    ] = None,
    inventory: InventoryOption = None,
    train_items: Annotated[
        Path | None,
        typer.Option(help="Item ids that may be learned from; all others are held out."),
    ] = None,
    conditions: Annotated[
        str | None, typer.Option(help="Comma-separated; default: all that need no further fitting.")
    ] = None,
    measures: Annotated[
        str, typer.Option(help="Comma-separated: statements, letters, texts, drift.")
    ] = "statements,letters,texts,drift",
    subjects: Annotated[
        int | None, typer.Option(help="Evaluate a sample of so many, drawn with --seed.")
    ] = None,
    openings: Annotated[int, typer.Option(help="Statements after 1 to 3 user turns.")] = 1,
    strength: Annotated[float, typer.Option(help="Strength of every persona.")] = 1.0,
    seed: Annotated[int, typer.Option(help="For samples, fits and bootstrap.")] = 0,
    markdown: Annotated[Path | None, typer.Option(help="Also write the report here.")] = None,
    server: Annotated[
        str | None, typer.Option(help="Measure what this palign server serves, by subject id.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="For --server.", envvar="OPENAI_API_KEY", show_envvar=True)
    ] = None,
    in_flight: Annotated[int, typer.Option(help="Requests to --server at once.")] = 16,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.auto,
    dtype: Annotated[Dtype, typer.Option(help="auto: the checkpoint's own.")] = Dtype.auto,
    as_json: JsonOption = False,
) -> None:
    """Measure personas and prompts on answers they were not made from."""
    items = read_inventory(inventory) if inventory else built_in()
    sheets = read_answers(answers, items)
    people, chosen = _sample(sheets, subjects, seed)
    from palign_fit.evaluation.evaluate import Plan
    from palign_fit.evaluation.report import DEFAULT_CONDITIONS, evaluate_personas
    from palign_fit.evaluation.split import read_train_items

    plan = Plan(
        conditions=_listed(conditions) if conditions else DEFAULT_CONDITIONS,
        measures=_listed(measures),
        openings=openings,
        strength=strength,
        seed=seed,
    )
    train = read_train_items(train_items, items) if train_items else None
    files = _personas(personas, people) if personas else None
    quiet_transformers()
    started = perf_counter()
    with _bars() as progress:
        backend: Backend
        if server is not None:
            from palign_fit.evaluation.server import ServerBackend

            opened = None
            backend = ServerBackend(
                server, model, api_key=api_key, strength=strength, in_flight=in_flight
            )
        else:
            from palign_fit.evaluation.huggingface import HuggingFaceBackend
            from palign_fit.model import open_model

            opened = open_model(model, device=device.value, dtype=dtype.value)
            backend = HuggingFaceBackend(opened, strength)
        report = evaluate_personas(
            backend, opened, people, items, plan,
            train_items=train, files=files, progress=progress,
        )  # fmt: skip
    report["settings"]["subjects"] = chosen
    report["warnings"] += sheets.notes
    report["seconds"] = round(perf_counter() - started, 2)
    _show(report, markdown, as_json)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.strip() for one in text.split(",") if one.strip()))


def _sample(subjects: Sequence[Subject], count: int | None, seed: int) -> tuple[list[Subject], str]:
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


def _personas(folder: Path, subjects: Sequence[Subject]) -> list[Persona]:
    """The file of every subject. Raises InputError naming those that have none."""
    paths = [folder / f"{subject.id}.safetensors" for subject in subjects]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"--personas {folder}: {len(missing)} of {len(paths)} files are not there, such as "
            f"{missing[0]}; palign-fit run --out {folder} writes one a subject"
        )
    return [load(path) for path in paths]


@contextmanager
def _bars() -> Iterator[Progress]:
    """Progress bars on stderr if it is a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:

        @contextmanager
        def bar(name: str, total: int) -> Iterator[Tick]:
            task = bars.add_task(name, total=total)
            yield lambda count: bars.advance(task, count)

        yield bar


def _show(report: dict[str, Any], markdown: Path | None, as_json: bool) -> None:
    from rich.console import Console

    from palign_fit.evaluation import tables

    if markdown is not None:
        write_text(markdown, tables.markdown(report))
    if as_json:
        print(json.dumps(report))
    else:
        Console(highlight=False).print(tables.terminal(report))
