"""One question's answers beside one another in a terminal, or below one another where there is no room."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

NARROWEST = 30
"""Characters that a column must have to be read in."""


def side_by_side(
    question: str, answers: Sequence[tuple[str, str]], width: int | None
) -> RenderableType:
    """``answers`` are (whose, text). ``width`` of the terminal in characters; None where there is none."""
    # A frame, and a blank on either side of every column.
    if width is None or (width - 1) // len(answers) - 3 < NARROWEST:
        parts = [Text(clean(question), style="bold")]
        for who, said in answers:
            parts += [Text(f"\n{who}", style="bold cyan"), Text(clean(said))]
        return Group(*parts, Text())
    table = Table(
        title=Text(clean(question), style="bold"),
        title_justify="left",
        width=width,
        show_lines=True,
    )
    for who, _ in answers:
        table.add_column(who, ratio=1, overflow="fold")
    table.add_row(*(Text(clean(said)) for _, said in answers))
    return table


def clean(text: str) -> str:
    """A model's words without what would command a terminal."""
    return "".join(one if one.isprintable() or one == "\n" else " " for one in text)
