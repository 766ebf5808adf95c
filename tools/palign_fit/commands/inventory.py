"""palign-fit inventory, template: what to ask, and a form to fill in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import emit, inventory_of, with_exit_codes
from palign_fit.inputs.answers import form, template
from palign_fit.inputs.inventory import built_in


@with_exit_codes
def inventory(out: options.Out = None, as_json: options.Json = False) -> None:
    """Print the built-in inventory: 120 items of our own wording, CC0. CSV, or JSON with --json."""
    items = built_in()
    emit(items.to_json() + "\n" if as_json else items.to_csv(), out)


@with_exit_codes
def make_template(
    inventory: options.Inventory = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write, NAME.csv for a form that people fill in; default: JSON to stdout."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Print an answers file with every statement, to fill in with 1 (very inaccurate) to 5 (very accurate).

    As CSV (--out NAME.csv) it is a form with one statement a line, for any
    spreadsheet; as JSON it is for programs.
    """
    items = inventory_of(inventory)
    if out is not None and out.suffix.lower() == ".csv" and not as_json:
        emit(form(items), out)
        return
    sheet = template(items)
    statements = {item.id: f"I {item.text}." for item in items.items}
    whole = {"id": sheet["id"], "statements": statements, "answers": sheet["answers"]}
    emit(json.dumps(whole, indent=None if as_json else 1, ensure_ascii=False) + "\n", out)
