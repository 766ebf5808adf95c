"""palign-fit inventory, template: what to ask, and a form to fill in."""

from __future__ import annotations

import json

from palign_fit.commands.common import InventoryOption, JsonOption, OutOption, emit, with_exit_codes
from palign_fit.inputs.answers import template
from palign_fit.inputs.inventory import built_in, read_inventory


@with_exit_codes
def inventory(out: OutOption = None, as_json: JsonOption = False) -> None:
    """Print the built-in inventory: 120 items of our own wording, CC0. CSV, or JSON with --json."""
    items = built_in()
    emit(items.to_json() + "\n" if as_json else items.to_csv(), out)


@with_exit_codes
def make_template(
    inventory: InventoryOption = None, out: OutOption = None, as_json: JsonOption = False
) -> None:
    """Print an answers file with every item missing (null), to fill in with 1 to 5."""
    items = read_inventory(inventory) if inventory else built_in()
    emit(json.dumps(template(items), indent=None if as_json else 1) + "\n", out)
