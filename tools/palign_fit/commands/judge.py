"""palign-fit judge: answers to open questions, rated by another model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from palign_fit.commands.common import (
    Device,
    Dtype,
    DtypeOption,
    InventoryOption,
    JsonOption,
    quiet_transformers,
    with_exit_codes,
)
from palign_fit.commands.measuring import (
    check_made_for,
    check_target,
    listed,
    personas_of,
    sample,
    show,
)
from palign_fit.errors import InputError
from palign_fit.inputs.answers import read_answers
from palign_fit.inputs.inventory import built_in, read_inventory
from palign_fit.progress import show_progress

if TYPE_CHECKING:
    from palign_fit.evaluation.speakers import Speaker
    from vllm_palign.persona import Persona


@with_exit_codes
def judge(
    model: Annotated[str, typer.Option(help="Hugging Face name or checkpoint folder.")],
    answers: Annotated[Path, typer.Option(help="Answers: who the persons are.")],
    judge_url: Annotated[str, typer.Option(help="OpenAI-compatible endpoint that rates.")],
    judge_model: Annotated[
        str, typer.Option(help="Its model; the key is read from OPENAI_API_KEY.")
    ],
    personas: Annotated[Path | None, typer.Option(help="Folder of ID.safetensors.")] = None,
    inventory: InventoryOption = None,
    train_items: Annotated[
        Path | None, typer.Option(help="Item ids that may be learned from.")
    ] = None,
    conditions: Annotated[
        str,
        typer.Option(help="Of plain, few-shot, personality-prompt, palign, palign+prompt."),
    ] = "plain,personality-prompt,palign",
    subjects: Annotated[
        int | None, typer.Option(help="Judge a sample of so many, drawn with --seed.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer to a question.")] = 120,
    strength: Annotated[float, typer.Option(help="Strength of every persona.")] = 1.0,
    seed: Annotated[int, typer.Option(help="For samples, order and bootstrap.")] = 0,
    judge_in_flight: Annotated[int, typer.Option(help="Ratings asked for at once.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one rating.")] = 120.0,
    markdown: Annotated[Path | None, typer.Option(help="Also write the report here.")] = None,
    server: Annotated[
        str | None, typer.Option(help="Ask this palign server instead of loading the model.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="For --server.", envvar="PALIGN_API_KEY", show_envvar=True)
    ] = None,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    as_json: JsonOption = False,
) -> None:
    """Let another model rate how well answers to open questions fit each person."""
    check_target(markdown)
    items = read_inventory(inventory) if inventory else built_in()
    sheets = read_answers(answers, items)
    people, chosen = sample(sheets, subjects, seed)
    from palign_fit.evaluation.conditions import CONDITIONS, PALIGN
    from palign_fit.evaluation.judging import JudgePlan, judge_personas
    from palign_fit.evaluation.rater import Rater
    from palign_fit.evaluation.split import read_train_items, split

    plan = JudgePlan(listed(conditions), max_tokens=max_tokens, strength=strength, seed=seed)
    rater = Rater(
        judge_url, judge_model, os.environ.get("OPENAI_API_KEY"), judge_in_flight, timeout
    )
    train = read_train_items(train_items, items) if train_items else None
    files = personas_of(personas, people) if personas else None
    steered = any(CONDITIONS[name].method for name in plan.conditions)
    if steered and files is None and server is None:
        raise InputError("--personas: is missing; palign-fit run writes them, or leave out palign")
    given: Sequence[Persona | None] = files or [None] * len(people)
    split_sheets = [
        split(subject, items, train, persona)
        for subject, persona in zip(people, given, strict=True)
    ]
    quiet_transformers()
    started = perf_counter()
    speaker: Speaker
    notes: list[str] = []
    if server is not None:
        from palign_fit.evaluation.server import ServedModel
        from palign_fit.evaluation.speakers import ServerSpeaker

        speaker = ServerSpeaker(ServedModel(server, api_key=api_key, strength=strength))
    else:
        from palign_fit.evaluation.speakers import HuggingFaceSpeaker
        from palign_fit.model.model import open_model

        opened = open_model(model, device=device.value, dtype=dtype.value)
        notes = check_made_for(opened, files or ())
        speaker = HuggingFaceSpeaker(opened, strength)
    with show_progress() as progress:
        known = {PALIGN: files} if files else {}
        report = judge_personas(speaker, rater, split_sheets, items, known, plan, progress)
    report["settings"]["subjects"] = chosen
    report["warnings"] += [*notes, *sheets.notes]
    report["seconds"] = round(perf_counter() - started, 2)
    show(report, markdown, as_json)
