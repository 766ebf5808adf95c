"""palign-fit run: answers -> persona files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

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
from palign_fit.inventory import Inventory, built_in, read_inventory
from vllm_palign.persona import Persona, save

if TYPE_CHECKING:
    from palign_fit.fit import Settings

SUFFIX = ".safetensors"


class Method(StrEnum):
    palign = "palign"
    pas_reference = "pas-reference"


@with_exit_codes
def run(
    model: Annotated[str, typer.Option(help="Hugging Face name or checkpoint folder.")],
    answers: Annotated[Path, typer.Option(help="Answers: JSON, JSONL or CSV.")],
    out: Annotated[Path, typer.Option(help="Folder, or NAME.safetensors for one subject.")],
    inventory: InventoryOption = None,
    method: Annotated[Method, typer.Option(help="How directions are found.")] = Method.palign,
    heads: Annotated[int, typer.Option(help="How many heads to steer.")] = 24,
    alpha: Annotated[str, typer.Option(help="auto: held-out items decide; or a number.")] = "auto",
    seed: Annotated[int, typer.Option(help="Deals items into folds.")] = 0,
    name: Annotated[str | None, typer.Option(help="Name to record (one subject).")] = None,
    description: Annotated[str, typer.Option(help="Free text to record.")] = "",
    base_model: Annotated[
        str | None, typer.Option(help="Model name to record; default: --model.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.auto,
    dtype: Annotated[Dtype, typer.Option(help="auto: the checkpoint's own.")] = Dtype.auto,
    as_json: JsonOption = False,
) -> None:
    """Fit one persona file per subject of an answers file."""
    number = _alpha(alpha)
    items = read_inventory(inventory) if inventory else built_in()
    subjects = read_answers(answers, items)
    paths = _targets(out, subjects)
    if name is not None and len(subjects) > 1:
        raise InputError(f"--name: the answers hold {len(subjects)} subjects, each has its own id")
    if len(description) > 1000 or not description.isprintable():
        raise InputError("--description: wanted at most 1000 printable characters")
    # torch and transformers take seconds to import: only after everything cheap was checked.
    from palign_fit.fit import Settings, check_subject
    from palign_fit.model import open_model

    settings = Settings(method=method.value, heads=heads, alpha=number, seed=seed)
    for subject in subjects:
        check_subject(subject)
    quiet_transformers()
    started = perf_counter()
    opened = open_model(model, base_model=base_model, device=device.value, dtype=dtype.value)
    reports = []
    with _fitting(opened, items, subjects, settings) as personas:
        for persona, path in zip(personas, paths, strict=True):
            final = _labelled(persona, name, description)
            _save(final, path)
            reports.append(_report(final, path))
    result = {
        "method": method.value,
        "model": opened.base_model,
        "personas": reports,
        "seconds": round(perf_counter() - started, 2),
    }
    if as_json:
        print(json.dumps(result))
        return
    for report in reports:
        print(
            f"{report['path']}: alpha {report['alpha']:g}, held-out alignment "
            f"{report['alignment']:.2f}, perplexity {report['perplexity']:.1f} "
            f"(plain {report['perplexity_plain']:.1f})"
        )
        for warning in report["warnings"]:
            typer.echo(f"warning: {report['id']}: {warning}", err=True)


@contextmanager
def _fitting(
    model: Any, items: Inventory, subjects: Sequence[Subject], settings: Settings
) -> Iterator[Iterator[Persona]]:
    """The personas being fitted, with progress bars if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from palign_fit.fit import fit_personas

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        reading = progress.add_task("reading activations", total=None)
        trying = progress.add_task("alphas tried", total=None)
        done = progress.add_task("personas", total=len(subjects))
        personas = fit_personas(
            model,
            items,
            subjects,
            settings,
            prepare_tick=lambda count: progress.advance(reading, count),
            alpha_tick=lambda count: progress.advance(trying, count),
        )
        yield _counted(personas, lambda: progress.advance(done))


def _counted(personas: Iterator[Persona], tick: Callable[[], None]) -> Iterator[Persona]:
    for persona in personas:
        tick()
        yield persona


def _alpha(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"--alpha {text[:40]!r}: wanted auto or a number")
    return number


def _targets(out: Path, subjects: Sequence[Subject]) -> list[Path]:
    """Where each subject's file goes; refused before any work is done."""
    if out.suffix == SUFFIX and not out.is_dir():
        if len(subjects) > 1:
            raise InputError(
                f"--out {out}: is one file and the answers hold {len(subjects)} subjects; "
                "give a folder, which gets one file each"
            )
        paths = [out]
    else:
        paths = [out / f"{subject.id}{SUFFIX}" for subject in subjects]
    folder = paths[0].parent
    taken = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    if not taken.is_dir():
        raise InputError(f"--out {out}: {taken} is there and is not a folder")
    if any(path.is_dir() for path in paths):
        raise InputError(f"--out {out}: a folder stands where a persona file would go")
    return paths


def _labelled(persona: Persona, name: str | None, description: str) -> Persona:
    """The persona under the user's name and description; a new digest, since they are in the file."""
    from dataclasses import replace

    return replace(persona, name=name or persona.name, description=description, digest="")


def _save(persona: Persona, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(persona, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _report(persona: Persona, path: Path) -> dict[str, Any]:
    kept = ("alignment", "effect", "perplexity", "perplexity_plain", "weak", "warnings")
    return {
        "id": persona.name,
        "path": str(path),
        "digest": persona.digest,
        "alpha": persona.alpha,
        **{name: persona.fit[name] for name in kept},
    }
