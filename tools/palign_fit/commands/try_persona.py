"""palign-fit try: what the model says plain and steered, side by side in the terminal."""

from __future__ import annotations

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import opened_model, with_exit_codes
from palign_fit.commands.measuring import check_made_for, listed
from palign_fit.errors import InputError
from palign_fit.progress import show_progress
from vllm_palign.persona import load


class Scope(StrEnum):
    answers = "answers"
    all = "all"


@with_exit_codes
def try_persona(
    persona: Annotated[Path, typer.Argument(help="A persona file.")],
    questions: Annotated[list[str], typer.Argument(help="What is asked; several in turn.")],
    model: options.Model,
    strength: Annotated[
        str, typer.Option("--strength", help="Comma-separated; 0 is the plain model.")
    ] = "0,1,2",
    system: Annotated[str | None, typer.Option("--system", help="A system prompt for all.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of an answer.")] = 120,
    scope: Annotated[
        Scope, typer.Option("--scope", help="Which tokens are steered; a server's default first.")
    ] = Scope.answers,
    device: options.OnDevice = options.Device.auto,
    dtype: options.InDtype = options.Dtype.auto,
    memory: options.Memory = None,
    as_json: options.Json = False,
) -> None:
    """Ask the model, plain and with a persona, and show the answers side by side.

    Every answer is the likeliest one, so that what differs is the persona.
    """
    strengths = strengths_of(strength)
    if not all(question.strip() for question in questions):
        raise InputError("QUESTIONS: one is empty, wanted something to ask")
    made = load(persona)
    most = made.max_strength
    beyond = [value for value in strengths if most is not None and abs(value) > most]
    # torch and transformers take seconds to import: only after everything cheap was checked.
    from palign_fit.evaluation.huggingface import HuggingFaceBackend
    from palign_fit.evaluation.tasks import Setting, Speech
    from palign_fit.model.model import model_dtype

    settings = [
        Setting(
            system=system, persona_id=made.name, persona=made, strength=value, scope=scope.value
        )
        for value in strengths
    ]
    asked = [Speech(setting, question) for question in questions for setting in settings]
    with show_progress() as progress:
        opened = opened_model(progress, model, device, dtype, memory=memory)
        warnings = check_made_for(opened, [made])
        with progress("answers", len(asked)) as tick:
            said = HuggingFaceBackend(opened).speak(asked, max_tokens, tick)
    if beyond:
        warnings.append(
            f"strength {', '.join(f'{value:g}' for value in beyond)}: a server refuses more than "
            f"{most:g} of this persona (its fit.max_strength)"
        )
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        told = {
            "persona": made.name, "digest": made.digest, "model": opened.base_model, "dtype": model_dtype(opened),
            "system": system, "scope": scope.value, "max_tokens": max_tokens, "warnings": warnings,
            "answers": [
                {"question": one.question, "strength": one.setting.strength, "text": text}
                for one, text in zip(asked, said, strict=True)
            ],
        }  # fmt: skip
        print(json.dumps(told))
        return
    from rich.console import Console

    from palign_fit.reporting.side_by_side import side_by_side

    console = Console(highlight=False)
    names = [named(value, made.name) for value in strengths]
    for place, question in enumerate(questions):
        own = said[place * len(names) : (place + 1) * len(names)]
        width = console.width if console.is_terminal else None
        # Without a terminal lines are as long as what was said.
        console.print(
            side_by_side(question, list(zip(names, own, strict=True)), width),
            soft_wrap=not console.is_terminal,
        )


def strengths_of(text: str) -> list[float]:
    """--strength: finite numbers, none twice. Raises InputError."""
    strengths: list[float] = []
    for part in listed(text):
        try:
            value = float(part) + 0.0
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise InputError(
                f"--strength {part[:40]!r}: wanted numbers with commas between, as 0,1,2"
            )
        if value not in strengths:
            strengths.append(value)
    if not strengths:
        raise InputError("--strength: names none, wanted numbers with commas between, as 0,1,2")
    return strengths


def named(strength: float, name: str) -> str:
    """What stands over an answer."""
    return "plain" if strength == 0 else f"{name} at {strength:g}"
