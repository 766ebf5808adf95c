"""palign-fit evaluate: how well personas fit people on answers they were not made from."""

from __future__ import annotations

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
from palign_fit.inputs.answers import read_answers
from palign_fit.inputs.inventory import built_in, read_inventory
from palign_fit.progress import show_progress

if TYPE_CHECKING:
    from palign_fit.evaluation.tasks import Backend


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
        str | None, typer.Option(help="For --server.", envvar="PALIGN_API_KEY", show_envvar=True)
    ] = None,
    in_flight: Annotated[int, typer.Option(help="Requests to --server at once.")] = 16,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = Device.auto,
    dtype: DtypeOption = Dtype.auto,
    as_json: JsonOption = False,
) -> None:
    """Measure personas and prompts on answers they were not made from."""
    check_target(markdown)
    items = read_inventory(inventory) if inventory else built_in()
    sheets = read_answers(answers, items)
    people, chosen = sample(sheets, subjects, seed)
    from palign_fit.evaluation.evaluate import Plan
    from palign_fit.evaluation.report import DEFAULT_CONDITIONS, evaluate_personas
    from palign_fit.evaluation.split import read_train_items

    plan = Plan(
        conditions=listed(conditions) if conditions else DEFAULT_CONDITIONS,
        measures=listed(measures),
        openings=openings,
        strength=strength,
        seed=seed,
    )
    train = read_train_items(train_items, items) if train_items else None
    files = personas_of(personas, people) if personas else None
    notes: list[str] = []
    quiet_transformers()
    started = perf_counter()
    with show_progress() as progress:
        backend: Backend
        if server is not None:
            from palign_fit.evaluation.server import ServedModel, ServerBackend

            opened = None
            served = ServedModel(server, api_key=api_key, strength=strength, in_flight=in_flight)
            backend = ServerBackend(served, model)
        else:
            from palign_fit.evaluation.huggingface import HuggingFaceBackend
            from palign_fit.model.model import open_model

            opened = open_model(model, device=device.value, dtype=dtype.value)
            notes = check_made_for(opened, files or ())
            backend = HuggingFaceBackend(opened, strength)
        report = evaluate_personas(
            backend, opened, people, items, plan,
            train_items=train, files=files, progress=progress,
        )  # fmt: skip
    report["settings"]["subjects"] = chosen
    report["warnings"] += [*notes, *sheets.notes]
    report["seconds"] = round(perf_counter() - started, 2)
    show(report, markdown, as_json)
