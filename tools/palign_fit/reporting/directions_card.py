"""What ``palign-fit inspect`` shows of a directions file, for people and for machines."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from palign_fit.reporting.card import plain
from vllm_palign.directions import Directions
from vllm_palign.directions.file import header
from vllm_palign.directions.numbers import short
from vllm_palign.directions.people import FORMS
from vllm_palign.directions.traits import TRAITS, trait_name


def as_json(made: Directions) -> dict[str, Any]:
    """Everything the file holds but its arrays."""
    whole = made.whole
    return {
        **header(made),
        "digest": made.digest,
        "heads": [
            {"layer": int(layer), "head": int(head), "score": short(score)}
            for layer, head, score in zip(whole.layers, whole.heads, whole.scores, strict=True)
        ],
    }


def card(made: Directions) -> RenderableType:
    """The card of one directions file."""
    table = Table.grid(padding=(0, 2))
    inventory, model = made.inventory, made.model
    known = int(made.whole.rows.sum())
    lines = {
        "directions of": model.base_model,
        "digest": made.digest,
        "shape": f"{model.num_layers} layers x {model.num_heads} heads x {model.head_dim}",
        "steers": f"{len(made.layers)} heads in {len(np.unique(made.layers))} layers",
        "inventory": f"{len(inventory.items)} items of {inventory.name}"
        + (f", learned from {known}" if known < len(inventory.items) else ""),
        "chats": f"perplexity {made.budget.plain:.3g} plain; {made.reach:g} of the alpha they bear is taken",
        "expect": f"alignment {made.expected:.2f} on unseen statements from a whole questionnaire",
        "read in": model.dtype,
        "made by": made.tool,
    }
    for name, value in lines.items():
        table.add_row(Text(name, style="bold"), escape(plain(value)))
    return Group(table, Text(), _followed(made), Text(), _telling(made))


def _followed(made: Directions) -> Table:
    table = Table(title="How held-out statements follow typical people, r", title_justify="left")
    table.add_column("trait")
    for dose in made.doses:
        table.add_column(f"{dose:g} x alpha", justify="right")
    for trait, row in zip(TRAITS, made.followed, strict=True):
        table.add_row(trait_name(trait), *("-" if np.isnan(r) else f"{r:.2f}" for r in row))
    return table


def _telling(made: Directions) -> Table:
    table = Table(title=f"The {FORMS[0]} items to ask first", title_justify="left")
    for name in ("item", "I ...", "trait", "key"):
        table.add_column(name)
    for place in made.order[: FORMS[0]]:
        item = made.inventory.items[place]
        table.add_row(item.id, escape(plain(item.text)), item.trait, "+" if item.sign > 0 else "-")
    return table
