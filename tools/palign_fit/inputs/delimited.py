"""CSV with a header line: an id column and one column an item, or a table of the PAPI data set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TextIO

from palign_fit.errors import InputError
from palign_fit.inputs import papi
from palign_fit.inputs.files import csv_rows
from palign_fit.inputs.row import Row

MAX_LINE = 1 << 20
_DIGIT = re.compile(r"[0-9](\.0+)?", re.ASCII)


def csv_records(text: TextIO, source: str) -> Iterator[Row]:
    """Records of CSV text. Raises InputError where it is no table, or has no id column."""
    for line, row in csv_rows(_lines(text, source), source):
        if "id" in row:
            answers = {name: _cell(cell) for name, cell in row.items() if name != "id"}
            yield Row(f"line {line}", {"id": row["id"].strip(), "answers": answers})
        elif papi.is_papi(row):
            yield Row(f"line {line}", {name: _cell(cell) for name, cell in row.items()})
        else:
            raise InputError(
                f"{source}: line 1: has no id column; the columns are {', '.join(row)[:100]!r}, "
                "separated by commas"
            )


def _lines(text: TextIO, source: str) -> Iterator[str]:
    """Lines, none so long that it could fill the memory."""
    while line := text.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise InputError(f"{source}: has a line of more than {MAX_LINE} characters")
        yield line


def _cell(cell: str) -> object:
    """A cell as JSON would write it; text that is no digit stays text and is refused later."""
    cell = cell.strip()
    if not cell:
        return None
    # Tables with gaps often come out of a data frame as "4.0".
    return int(cell[0]) if _DIGIT.fullmatch(cell) else cell
