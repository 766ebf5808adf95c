"""The options that several commands have, each worded once."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from palign_fit.errors import InputError


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[str, typer.Option("--model", help="Hugging Face name or checkpoint folder.")]
OnDevice = Annotated[Device, typer.Option("--device", help="Where the model runs.")]
InDtype = Annotated[
    Dtype, typer.Option("--dtype", help="auto: float32 on a CPU, else the checkpoint's own.")
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--base-model", help="Model name to record; default: --model, or its folder's name."
    ),
]
Answers = Annotated[
    Path,
    typer.Option(
        "--answers", help="Answers: JSON, JSONL, CSV, Parquet, Arrow, or a folder of such files."
    ),
]
Heads = Annotated[int, typer.Option("--heads", help="How many heads to steer.")]
Description = Annotated[
    str, typer.Option("--description", help="Free text to record in the persona.")
]
Inventory = Annotated[
    Path | None,
    typer.Option("--inventory", help="CSV or JSON inventory; default: the built-in 120 items."),
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache", help="Keeps what no input changes; default: ~/.cache/palign-fit."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Compute everything anew.")]
FailWeak = Annotated[bool, typer.Option("--fail-weak", help="A weak persona ends with exit 3.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")]
Out = Annotated[Path | None, typer.Option("--out", help="File to write; default: stdout.")]
Personas = Annotated[
    Path | None, typer.Option("--personas", help="Folder of ID.safetensors, one a subject.")
]
Directions = Annotated[
    Path | None,
    typer.Option(
        "--directions",
        help="What palign-fit directions wrote, in place of --model: no model is opened.",
    ),
]
ModelOrDirections = Annotated[
    str | None,
    typer.Option("--model", help="Hugging Face name or checkpoint folder; or give --directions."),
]
Seed = Annotated[int, typer.Option("--seed", help="Deals items into folds.")]
Memory = Annotated[
    float | None,
    typer.Option("--memory", help="GB the run may take, refused beyond; default: what is free."),
]
TrainItems = Annotated[
    Path | None,
    typer.Option(
        "--train-items", help="Item ids that may be learned from; all others are held out."
    ),
]
Subjects = Annotated[
    int | None, typer.Option("--subjects", help="Measure a sample of so many, drawn with --seed.")
]
Strength = Annotated[float, typer.Option("--strength", help="Strength of every persona.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Also write the report here.")]
Server = Annotated[
    str | None,
    typer.Option("--server", help="Measure what this palign server serves, by subject id."),
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", help="For --server.", envvar="PALIGN_API_KEY", show_envvar=True),
]
PersonaFile = Annotated[Path, typer.Option("--out", help="The persona file to write.")]
Name = Annotated[str | None, typer.Option("--name", help="Name to record; default: the file's.")]


def directions_or_model(
    context: typer.Context, model: str | None, directions: Path | None, of_a_model: Sequence[str]
) -> Path | None:
    """``directions``, or None for ``model``. Raises InputError unless exactly one is given, and for any of the
    options ``of_a_model`` beside directions, which were made with theirs."""
    if (model is None) == (directions is None):
        got = "both" if model is not None else "neither"
        raise InputError(
            f"--model, --directions: got {got}, wanted one: a model to open, or what palign-fit directions "
            "made of it"
        )
    if directions is None:
        return None
    given = [
        f"--{name.replace('_', '-')}"
        for name in of_a_model
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise InputError(
            f"{', '.join(given)}: not beside --directions, which were made with theirs; leave out, or give "
            "--model"
        )
    return directions
