"""palign-fit evaluate: how well personas fit people on answers they were not made from, with the options about what the model
says."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import check_file, open_cache, opened_model, with_exit_codes
from palign_fit.commands.measuring import People, listed, open_backend, show
from palign_fit.errors import InputError
from palign_fit.evaluation.client import IN_FLIGHT
from palign_fit.methods.palign.sentences import sentences_read
from palign_fit.model.cache import Cache
from palign_fit.progress import Progress, show_progress

if TYPE_CHECKING:
    from palign_fit.evaluation.speech.plan import SpeechPlan
    from palign_fit.evaluation.speech.reader import Reader
    from palign_fit.model.model import OpenedModel


@with_exit_codes
def evaluate(
    model: options.Model,
    answers: options.Answers,
    personas: Annotated[
        Path | None,
        typer.Option(
            help="Folder of ID.safetensors; without it they are fitted here, and kept in --cache."
        ),
    ] = None,
    inventory: options.Inventory = None,
    train_items: options.TrainItems = None,
    conditions: Annotated[
        str | None, typer.Option(help="Comma-separated; default: all that need no further fitting.")
    ] = None,
    measures: Annotated[
        str,
        typer.Option(help="Comma-separated: statements, drift; answers, damage, fading."),
    ] = "statements,drift",
    subjects: options.Subjects = None,
    openings: Annotated[int, typer.Option(help="Statements after 1 to 3 user turns.")] = 1,
    strength: options.Strength = 1.0,
    strengths: Annotated[
        str, typer.Option(help="Of answers, damage and fading, comma-separated, such as 0.5,1,2.")
    ] = "1",
    system: Annotated[
        list[str] | None,
        typer.Option(help='System prompt of answers, "" for none; may be given again.'),
    ] = None,
    reader: Annotated[
        list[str] | None,
        typer.Option(
            help="Reads answers: a model's name or folder, or URL or URL#MODEL of an OpenAI-compatible "
            "server; default: the plain model. May be given again."
        ),
    ] = None,
    questions: Annotated[
        str,
        typer.Option(
            help="Of answers: test or train, with :N only so many a trait, such as test:2."
        ),
    ] = "test",
    turns: Annotated[int, typer.Option(help="Turns of fading's conversations.")] = 50,
    seed: Annotated[int, typer.Option(help="For samples, fits and bootstrap.")] = 0,
    markdown: options.Markdown = None,
    server: options.Server = None,
    api_key: options.ApiKey = None,
    in_flight: Annotated[int, typer.Option(help="Requests to --server at once.")] = IN_FLIGHT,
    device: options.OnDevice = options.Device.auto,
    dtype: options.InDtype = options.Dtype.auto,
    memory: options.Memory = None,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    as_json: options.Json = False,
) -> None:
    """Measure personas and prompts on answers they were not made from."""
    if markdown is not None:
        check_file("--markdown", markdown)
    people = People.read(answers, inventory, subjects, seed, train_items, personas)
    from palign_fit.evaluation.conditions import CONDITIONS
    from palign_fit.evaluation.evaluating import DEFAULT_CONDITIONS, evaluate_personas
    from palign_fit.evaluation.readings import Plan

    plan = Plan(
        conditions=listed(conditions) if conditions else DEFAULT_CONDITIONS,
        measures=listed(measures),
        openings=openings,
        strength=strength,
        seed=seed,
        speech=speech_plan(strengths, system, questions, turns),
    )
    fits = people.files is None and any(CONDITIONS[name].method for name in plan.conditions)
    started = perf_counter()
    with show_progress() as progress:
        backend, opened, warnings = open_backend(
            model, people.files or (), progress, device=device, dtype=dtype, memory=memory,
            server=server, api_key=api_key, strength=strength, in_flight=in_flight,
            texts=sentences_read(len(people.items.items)) if fits else 0,
        )  # fmt: skip
        kept = open_cache(cache, no_cache)
        readers = open_readers(
            reader or [], plan.measures, model, opened, kept, progress,
            device=device, dtype=dtype, memory=memory,
        )  # fmt: skip
        report = evaluate_personas(
            backend, opened, people.subjects, people.items, plan,
            train_items=people.train, files=people.files, readers=readers,
            cache=kept, progress=progress,
        )  # fmt: skip
    people.sign(report, warnings, perf_counter() - started)
    show(report, markdown, as_json)


def speech_plan(
    strengths: str, systems: Sequence[str] | None, questions: str, turns: int
) -> SpeechPlan:
    """``questions``: ``test`` or ``train:3``. Raises InputError."""
    from palign_fit.evaluation.speech.plan import SpeechPlan

    try:
        doses = tuple(float(one) for one in listed(strengths))
    except ValueError as error:
        raise InputError(f"--strengths {strengths!r}: wanted numbers, as 0.5,1,2") from error
    part, _, each = questions.partition(":")
    if each and not each.isdecimal():
        raise InputError(f"--questions {questions!r}: wanted test, train, or as test:2")
    given = {} if not systems else {"systems": tuple(dict.fromkeys(systems))}
    return SpeechPlan(
        strengths=tuple(dict.fromkeys(doses)),
        part=part,
        each=int(each) if each else None,
        turns=turns,
        **given,
    )


def open_readers(
    named: Sequence[str],
    measures: Collection[str],
    model: str,
    opened: OpenedModel | None,
    cache: Cache,
    progress: Progress,
    *,
    device: options.Device,
    dtype: options.Dtype,
    memory: float | None,
) -> list[Reader]:
    """The readers that ``named`` are: URLs, or models that are opened here, ``model`` itself if it is open or none is
    named. Raises InputError."""
    from palign_fit.evaluation.speech.reader import RatingReader, WordReader

    if not {"answers", "fading"} & set(measures):
        return []
    readers: list[Reader] = []
    for name in dict.fromkeys(named or [model]):
        if name.startswith(("http://", "https://")):
            url, _, asked = name.partition("#")
            readers.append(RatingReader(url, asked or None, os.environ.get("OPENAI_API_KEY")))
        elif name == model and opened is not None:
            readers.append(WordReader(opened, cache))
        else:
            own = opened_model(progress, name, device, dtype, memory=memory)
            readers.append(WordReader(own, cache))
    twice = {one.name for one in readers if [other.name for other in readers].count(one.name) > 1}
    if twice:
        raise InputError(
            f"--reader: two are called {', '.join(sorted(twice))}; wanted different names"
        )
    return readers
