"""palign-fit inspect: what is in a persona file, or in a directions file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import with_exit_codes
from palign_fit.errors import InputError
from vllm_palign.directions import is_directions, load_directions
from vllm_palign.persona import load


@with_exit_codes
def inspect(
    file: Annotated[Path, typer.Argument(help="A persona or directions file.")],
    as_json: options.Json = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw the head map, as PNG.")] = None,
) -> None:
    """Show what is in a persona file, or in a directions file."""
    from rich.console import Console

    from palign_fit.reporting import card

    made = load_directions(file) if is_directions(file) else None
    if made is not None:
        if plot is not None:
            raise InputError("--plot: draws a persona's heads; directions have none of their own")
        if as_json:
            print(json.dumps(card.directions_as_json(made)))
        else:
            Console(highlight=False).print(card.directions_card(made))
        return
    persona = load(file)
    if plot is not None:
        from palign_fit.reporting.plot import save_head_map

        save_head_map(persona, plot)
    if as_json:
        print(json.dumps(card.as_json(persona)))
    else:
        Console(highlight=False).print(card.card(persona))
