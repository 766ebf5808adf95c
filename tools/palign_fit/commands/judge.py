"""palign-fit judge: answers to open questions, rated by another model."""

from __future__ import annotations

import os
from time import perf_counter
from typing import Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import check_file, with_exit_codes
from palign_fit.commands.measuring import People, listed, open_backend, show
from palign_fit.errors import InputError
from palign_fit.progress import show_progress


@with_exit_codes
def judge(
    model: options.Model,
    answers: options.Answers,
    judge_url: Annotated[str, typer.Option(help="OpenAI-compatible endpoint that rates.")],
    judge_model: Annotated[
        str, typer.Option(help="Its model; the key is read from OPENAI_API_KEY.")
    ],
    personas: options.Personas = None,
    inventory: options.Inventory = None,
    train_items: options.TrainItems = None,
    conditions: Annotated[
        str,
        typer.Option(help="Of plain, few-shot, personality-prompt, palign, palign+prompt."),
    ] = "plain,personality-prompt,palign",
    subjects: options.Subjects = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer to a question.")] = 120,
    strength: options.Strength = 1.0,
    seed: Annotated[int, typer.Option(help="For samples, order and bootstrap.")] = 0,
    judge_in_flight: Annotated[int, typer.Option(help="Ratings asked for at once.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one rating.")] = 120.0,
    markdown: options.Markdown = None,
    server: options.Server = None,
    api_key: options.ApiKey = None,
    device: options.OnDevice = options.Device.auto,
    dtype: options.InDtype = options.Dtype.auto,
    memory: options.Memory = None,
    as_json: options.Json = False,
) -> None:
    """Let another model rate how well answers to open questions fit each person."""
    if markdown is not None:
        check_file("--markdown", markdown)
    people = People.read(answers, inventory, subjects, seed, train_items, personas)
    from palign_fit.evaluation.conditions import CONDITIONS, PALIGN, check_learned
    from palign_fit.evaluation.judge import Rater
    from palign_fit.evaluation.judging import JudgePlan, judge_personas
    from palign_fit.evaluation.split import split_all

    plan = JudgePlan(listed(conditions), max_tokens=max_tokens, strength=strength, seed=seed)
    rater = Rater(
        judge_url, judge_model, os.environ.get("OPENAI_API_KEY"), judge_in_flight, timeout
    )
    steered = any(CONDITIONS[name].method for name in plan.conditions)
    if steered and people.files is None and server is None:
        raise InputError("--personas: is missing; palign-fit run writes them, or leave out palign")
    check_learned(plan.conditions, people.files, people.train)
    sheets = split_all(people.subjects, people.items, people.train, people.files)
    known = {PALIGN: people.files} if people.files else {}
    started = perf_counter()
    with show_progress() as progress:
        backend, _, warnings = open_backend(
            model, people.files or (), progress, device=device, dtype=dtype, memory=memory,
            server=server, api_key=api_key, strength=strength,
        )  # fmt: skip
        report = judge_personas(backend, rater, sheets, people.items, known, plan, progress)
    people.sign(report, warnings, perf_counter() - started)
    show(report, markdown, as_json)
