"""palign-fit run: answers -> persona files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import (
    alpha_of,
    check_description,
    inventory_of,
    learned_items,
    open_cache,
    opened_model,
    with_exit_codes,
)
from palign_fit.commands.tally import Tally
from palign_fit.errors import InputError, refuse
from palign_fit.fit import DirectionsFitter, Fitter, open_fitter
from palign_fit.inputs.answers import Answers, Refusal, read_answers
from palign_fit.methods.palign.sentences import sentences_read
from palign_fit.methods.settings import METHODS, Settings, check_subject, shared_digest
from palign_fit.model.cache import ModelCache
from palign_fit.output.folder import FolderOutput
from palign_fit.output.population import Job, Output, fit_population, run_inputs
from palign_fit.output.shards import ShardOutput
from palign_fit.progress import show_progress
from vllm_palign.directions import Directions, load_directions

_OF_A_MODEL = (
    "inventory", "train_items", "method", "heads", "seed", "base_model", "device", "dtype", "memory",
    "cache", "no_cache", "check",
)  # fmt: skip
"""Options that say how a model is read: directions were made with theirs."""


@with_exit_codes
def run(
    context: typer.Context,
    answers: options.Answers,
    out: Annotated[Path, typer.Option(help="Folder, or NAME.safetensors for one subject.")],
    model: options.ModelOrDirections = None,
    directions: options.Directions = None,
    inventory: options.Inventory = None,
    train_items: options.TrainItems = None,
    method: Annotated[
        str, typer.Option(help=f"How directions are found: {' or '.join(METHODS)}.")
    ] = next(iter(METHODS)),
    heads: options.Heads = 24,
    alpha: Annotated[
        str,
        typer.Option(
            help="auto: as far as chats stay what they were and statements follow; or a number above 0, at most 100."
        ),
    ] = "auto",
    seed: options.Seed = 0,
    name: Annotated[str | None, typer.Option(help="Name to record (one subject).")] = None,
    description: options.Description = "",
    base_model: options.BaseModel = None,
    device: options.OnDevice = options.Device.auto,
    dtype: options.InDtype = options.Dtype.auto,
    check: Annotated[
        bool,
        typer.Option(
            help="Measure each persona by forward passes; without, estimate (populations)."
        ),
    ] = True,
    shards: Annotated[
        int | None, typer.Option(help="Write zip shards of so many personas, not single files.")
    ] = None,
    memory: options.Memory = None,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    fail_weak: options.FailWeak = False,
    allow_skipped: Annotated[
        bool, typer.Option("--allow-skipped", help="Skipped subjects do not end with exit 1.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Fit one persona per subject. Started again, it goes on where it was stopped.

    With --directions no model is opened, and nothing is measured by forward passes.

    Exit 2: the input is at fault, nothing was done.
    Exit 1: some subjects were skipped, or the fit failed.
    Exit 3: with --fail-weak, a persona is weak: many a stranger's would
    follow the answers as well.
    What could be fitted is written in all cases but 2.
    """
    number = alpha_of(alpha)
    settings = Settings(method=method, heads=heads, alpha=number, seed=seed, check=check)
    check_description(description)
    given = options.directions_or_model(context, model, directions, _OF_A_MODEL)
    made = load_directions(given) if given else None
    items = made.inventory if made else inventory_of(inventory)
    people = read_answers(answers, items)
    if name is not None and len(people) > 1:
        raise InputError(f"--name: the answers hold {len(people)} subjects, each has its own id")
    output = _output(out, shards, len(people))
    for note in people.notes:
        typer.echo(f"palign-fit: {note}", err=True)
    refused = _refused(people)
    started = perf_counter()
    tally = Tally(len(people), as_json=as_json)
    with show_progress() as progress:
        if made is not None:
            work = _of_directions(made, number)
        else:
            used = learned_items(train_items, items)
            texts = sentences_read(int(used.sum()))
            opened = opened_model(
                progress, str(model), device, dtype,
                base_model=base_model, texts=texts, memory=memory,
            )  # fmt: skip
            kept = ModelCache.of(opened, open_cache(cache, no_cache))

            def prepare() -> Fitter:
                return open_fitter(opened, items, used, settings, kept, progress)

            shared = shared_digest(opened, kept.checkpoint, items, used, settings)
            work = _Work(prepare, shared, opened.base_model, check)
        job = Job(
            run=run_inputs(work.made_with, alpha=number, check=work.check),
            name=name,
            description=description,
            refused=refused,
        )
        with progress("personas", len(people)) as done:
            for outcome in fit_population(people, work.prepare, job, output):
                tally.add(outcome)
                done(1, free=tally.last_was_kept)
    head = {"method": method, "model": work.base_model}
    tally.tell(head, seconds=perf_counter() - started, out=out)
    tally.leave(fail_weak=fail_weak, allow_skipped=allow_skipped)


@dataclass(frozen=True)
class _Work:
    """What fits, and what a run is known by."""

    prepare: Callable[[], Fitter]
    made_with: str
    base_model: str
    check: bool


def _of_directions(directions: Directions, alpha: float | None) -> _Work:
    return _Work(
        lambda: DirectionsFitter(directions, alpha),
        directions.made_with,
        directions.base_model,
        check=False,
    )


def _output(out: Path, shards: int | None, subjects: int) -> Output:
    """Where personas go; refused before any work is done."""
    if shards is None:
        return FolderOutput(out, subjects)
    return ShardOutput(out, shards, subjects)


def _refused(people: Answers) -> dict[str, Refusal]:
    """Subjects whose answers describe nobody. Raises InputError where there is no other."""
    refused = {}
    for subject in people:
        try:
            check_subject(subject)
        except InputError as error:
            refused[subject.id] = Refusal(subject.id, str(error))
            if len(people) == 1:
                raise
    if len(refused) == len(people):
        reasons = [one.reason for one in refused.values()]
        raise refuse("--answers", reasons, "No subject can be fitted.")
    return refused
