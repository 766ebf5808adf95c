"""Answers files of every accepted form, as a stream of records in bounded memory.

``read_records`` yields what a file holds, one record at a time: an object with ``id`` and ``answers``,
or a flat record of the PAPI data set (``papi``). Nothing is believed yet; ``sheets`` checks it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from palign_fit.errors import InputError
from palign_fit.inputs import papi
from palign_fit.inputs.files import strict_json
from palign_fit.inputs.jsons import json_records
from palign_fit.inputs.rows import (
    Form,
    Row,
    bounded_lines,
    csv_rows,
    first_character,
    parse_rows,
    read_rows,
)
from vllm_palign.directions.inventory import MAX_ITEMS

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet", ".arrow", ".feather")
"""What is read out of a folder; a single file is known by its content, whatever its name."""

SHEET = ("item", "statement", "answer")
"""Columns of the form that ``palign-fit template`` prints as CSV: one line an item, one person."""

_DIGIT = re.compile(r"[0-9](\.0+)?", re.ASCII)
_INDEX = "__index_level_"
"""How pandas names the row numbers that it writes along."""


def answer_files(path: Path) -> tuple[list[Path], list[str]]:
    """The answers files of ``path``, a file or a folder, and the names in a folder that are none.

    Raises InputError for a folder without answers files.
    """
    if not path.is_dir():
        return [path], []
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in inside if entry.is_file() and entry.suffix.lower() in SUFFIXES]
    if not files:
        raise InputError(
            f"{path}: is a folder without answers files, wanted some ending in "
            f"{', '.join(SUFFIXES)}"
        )
    return files, [entry.name for entry in inside if entry not in files]


def read_records(path: Path) -> Iterator[Row]:
    """Every record of one file. Raises InputError where it stops being readable."""
    yield from read_rows(path, _FORM)


def parse_records(file: BinaryIO, source: str) -> Iterator[Row]:
    """As ``read_records``, of an open, seekable file; ``source`` names it in errors."""
    yield from parse_rows(file, source, _FORM)


def _text_records(text: TextIO, source: str) -> Iterator[Row]:
    parse = json_records if first_character(text) in ("{", "[") else _csv_records
    yield from parse(text, source)


def _csv_records(text: TextIO, source: str) -> Iterator[Row]:
    """Records of CSV text. Raises InputError where it is no table, or has no id column."""
    lines = bounded_lines(text, source)
    first = next(lines, "")
    rows = csv_rows(chain([first], lines), source, _sheet_delimiter(first))
    for line, row in rows:
        if set(row) == set(SHEET):
            yield _filled_in(chain([(line, row)], rows), source)
        elif "id" in row:
            answers = {name: _cell(cell) for name, cell in row.items() if name != "id"}
            yield Row(f"line {line}", {"id": row["id"].strip(), "answers": answers})
        elif papi.is_papi(row):
            yield Row(f"line {line}", {name: _cell(cell) for name, cell in row.items()})
        else:
            raise InputError(
                f"{source}: line 1: has no id column; the columns are {', '.join(row)[:100]!r}"
            )


def _sheet_delimiter(header: str) -> str:
    """Our own form is read back whatever a spreadsheet separates its columns by."""
    for mark in (";", "\t"):
        if tuple(cell.strip(' \r\n"') for cell in header.split(mark)) == SHEET:
            return mark
    return ","


def _filled_in(rows: Iterator[tuple[int, dict[str, str]]], source: str) -> Row:
    """The one person of a form."""
    answers: dict[str, object] = {}
    for line, row in rows:
        item = row["item"].strip()
        if item in answers:
            raise InputError(f"{source}: line {line}: item {item[:40]!r} is there twice")
        if len(answers) > MAX_ITEMS:
            raise InputError(f"{source}: has more than {MAX_ITEMS} items, the most that is read")
        answers[item] = row["answer"].strip() if item == "id" else _cell(row["answer"])
    if "id" not in answers:
        raise InputError(f"{source}: has no line for item 'id', whose answer names the person")
    return Row("form", {"id": answers.pop("id"), "answers": answers})


def _cell(cell: str) -> object:
    """A cell as JSON would write it; text that is no digit stays text and is refused later."""
    cell = cell.strip()
    if not cell:
        return None
    # Tables with gaps often come out of a data frame as "4.0".
    return int(cell[0]) if _DIGIT.fullmatch(cell) else cell


def _record(row: dict[str, Any], source: str) -> object:
    """A row of a Parquet or Arrow file as JSON would write it: answers are an object, ids are text."""
    if "id" not in row:
        return row
    name = row.pop("id")
    # Row numbers of a data frame are integers.
    name = str(name) if type(name) is int else name
    if set(row) != {"answers"}:
        return {"id": name, "answers": row}
    answers = row["answers"]
    if isinstance(answers, str):
        answers = strict_json(answers, source)
    elif isinstance(answers, list):  # a map comes as pairs
        if len({item for item, _ in answers}) != len(answers):
            raise InputError(f"{source}: an item is there twice")
        answers = dict(answers)
    return {"id": name, "answers": answers}


def _columns(schema: Any, source: str) -> list[str]:
    """Columns to read; those that hold no answers are refused before their content is unpacked."""
    from pyarrow import types

    names = [name for name in schema.names if not name.startswith(_INDEX)]
    if len(set(schema.names)) != len(schema.names):
        raise InputError(f"{source}: a column name is there twice")
    if "id" not in names and not papi.is_papi(names):
        raise InputError(f"{source}: has no id column; the columns are {', '.join(names)[:100]!r}")
    whole = set(names) == {"id", "answers"}
    plain = (
        types.is_integer, types.is_floating, types.is_boolean, types.is_null,
        types.is_string, types.is_large_string, types.is_string_view,
    )  # fmt: skip
    for name in names:
        kind = schema.field(name).type
        while types.is_dictionary(kind):
            kind = kind.value_type
        named = types.is_struct(kind) or (
            types.is_map(kind) and any(fits(kind.key_type) for fits in plain[-3:])
        )
        packed = whole and name == "answers" and named
        if not packed and not any(fits(kind) for fits in plain):
            raise InputError(
                f"{source}: column {name[:40]!r} is of type {str(kind)[:80]}, wanted numbers"
            )
    return names


_FORM = Form(_text_records, _columns, _record)
