"""palign-fit run: answers -> persona files."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import (
    alpha_of,
    check_description,
    inventory_of,
    open_cache,
    quiet_transformers,
    with_exit_codes,
)
from palign_fit.commands.tally import Tally
from palign_fit.errors import InputError, refuse
from palign_fit.fit import Fitter, open_fitter
from palign_fit.inputs.answers import Answers, Refusal, read_answers
from palign_fit.methods.palign.sentences import shipped
from palign_fit.methods.settings import METHODS, Settings, check_subject
from palign_fit.output.folder import FolderOutput
from palign_fit.output.population import Job, Output, fit_population, run_inputs
from palign_fit.output.shards import ShardOutput
from palign_fit.progress import show_progress


@with_exit_codes
def run(
    model: options.Model,
    answers: options.Answers,
    out: Annotated[Path, typer.Option(help="Folder, or NAME.safetensors for one subject.")],
    inventory: options.Inventory = None,
    method: Annotated[
        str, typer.Option(help=f"How directions are found: {' or '.join(METHODS)}.")
    ] = next(iter(METHODS)),
    heads: options.Heads = 24,
    alpha: Annotated[
        str,
        typer.Option(
            help="auto: as far as neutral text stays fluent and statements follow; or a number above 0, at most 100."
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Deals items into folds.")] = 0,
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
    memory: Annotated[
        float | None,
        typer.Option(help="GB the run may take, refused beyond; default: what is free."),
    ] = None,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    allow_weak: options.AllowWeak = False,
    allow_skipped: Annotated[
        bool, typer.Option("--allow-skipped", help="Skipped subjects do not end with exit 1.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Fit one persona per subject. Started again, it goes on where it was stopped.

    Exit 2: the input is at fault, nothing was done.
    Exit 1: some subjects were skipped, or the fit failed.
    Exit 3: a persona is weak: its held-out alignment could be chance.
    What could be fitted is written in all cases but 2.
    """
    number = alpha_of(alpha)
    settings = Settings(method=method, heads=heads, alpha=number, seed=seed, check=check)
    check_description(description)
    items = inventory_of(inventory)
    people = read_answers(answers, items)
    if name is not None and len(people) > 1:
        raise InputError(f"--name: the answers hold {len(people)} subjects, each has its own id")
    output = _output(out, shards, len(people))
    for note in people.notes:
        typer.echo(f"palign-fit: {note}", err=True)
    # torch and transformers take seconds to import: only after everything cheap was checked.
    from palign_fit.model import checkpoint
    from palign_fit.model.model import open_model

    refused = _refused(people)
    quiet_transformers()
    started = perf_counter()
    kept = open_cache(cache, no_cache)
    with show_progress() as progress, progress(f"opening {model}", None):
        opened = open_model(
            model,
            base_model=base_model,
            device=device.value,
            dtype=dtype.value,
            texts=sum(map(len, shipped())) + 2 * int(people.used.sum()),
            memory=memory,
        )
        content = checkpoint.digest(opened, kept.folder)
    job = Job(
        run=run_inputs(opened, content, items, people.used, settings),
        name=name,
        description=description,
        refused=refused,
    )
    tally = Tally(len(people), as_json=as_json)
    with show_progress() as progress, progress("personas", len(people)) as done:

        def prepare() -> Fitter:
            return open_fitter(
                opened, items, people.used, settings,
                checkpoint=content, cache=kept, progress=progress,
            )  # fmt: skip

        for outcome in fit_population(people, prepare, job, output):
            tally.add(outcome)
            done(1, free=tally.last_was_kept)
    head = {"method": method, "model": opened.base_model}
    tally.tell(head, seconds=perf_counter() - started, out=out)
    tally.leave(allow_weak=allow_weak, allow_skipped=allow_skipped)


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
