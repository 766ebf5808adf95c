"""Files of many records, one at a time and in bounded memory: text, CSV lines, Parquet and Arrow.

``read_rows`` opens a file and tells by its first bytes what it is; what its text means, and which columns
it must have, its user says.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

from palign_fit.errors import InputError
from palign_fit.inputs.files import LOOKED_AT, MAX_BYTES, not_text, refuse_unreadable, unreadable

MAX_LINE = 1 << 20
_MAX_CELL = 10_000

_ARROW = {b"PAR1": "Parquet", b"ARROW1": "Arrow", b"\xff\xff\xff\xff": "Arrow"}
"""First bytes of Parquet, of an Arrow file and of an Arrow stream (what ``datasets`` saves)."""

_BATCH = 1024
"""Rows of a Parquet or Arrow file that are unpacked at a time."""

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


class Row(NamedTuple):
    """One record as the file has it; ``place`` says where, for errors."""

    place: str
    value: object


class Form(NamedTuple):
    """What a kind of file may hold; each part is told the file's name for its InputErrors.

    ``text`` makes rows of text; ``columns`` says which columns of a pyarrow Schema are read, ``record``
    what a row of them means.
    """

    text: Callable[[TextIO, str], Iterator[Row]]
    columns: Callable[[Any, str], list[str]]
    record: Callable[[dict[str, Any], str], object] = lambda row, _: row


def read_rows(path: Path, form: Form) -> Iterator[Row]:
    """Every row of one file. Raises InputError where it stops being readable."""
    try:
        with path.open("rb") as file:
            # A pipe cannot be looked at twice.
            yield from parse_rows(file if file.seekable() else _held(file, path), str(path), form)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, InputError):
            raise
        raise unreadable(error, path) from error


def parse_rows(file: BinaryIO, source: str, form: Form) -> Iterator[Row]:
    """Rows of an open, seekable file; ``source`` names it in errors."""
    start = file.read(LOOKED_AT)
    file.seek(0)
    kind = next((name for magic, name in _ARROW.items() if start.startswith(magic)), None)
    if kind is not None:
        yield from _arrow_rows(file, source, kind, form)
        return
    refuse_unreadable(start, source)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        yield from form.text(text, source)
    except UnicodeDecodeError as error:
        raise not_text(error, source) from error
    finally:
        text.detach()


def first_character(text: TextIO) -> str:
    """The first that is no white space, "" where there is none; ``text`` is at its start again."""
    first = ""
    while not first and (chunk := text.read(4096)):
        first = chunk.lstrip()[:1]
    text.seek(0)
    return first


def bounded_lines(text: TextIO, source: str) -> Iterator[str]:
    """Lines, none so long that it could fill the memory."""
    while line := text.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise InputError(f"{source}: has a line of more than {MAX_LINE} characters")
        yield line


def csv_rows(
    lines: Iterable[str], source: str, delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row by column name) of CSV lines, the first a header. Raises InputError.

    Columns that have neither a name nor a cell, which spreadsheets leave behind, are left out.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header, source)
        named = [place for place, name in enumerate(header) if name]
        width = named[-1] + 1
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if (
                len(cells) < width
                or any(cell.strip() for cell in cells[len(header) :])
                or max(map(len, cells)) > _MAX_CELL
            ):
                raise InputError(
                    f"{source}: line {reader.line_num}: has {len(cells)} cells, wanted "
                    f"{len(header)} as in the header, none over {_MAX_CELL} characters"
                )
            for place, (name, cell) in enumerate(zip(header, cells, strict=False), 1):
                if not name and cell.strip():
                    raise InputError(
                        f"{source}: line {reader.line_num}: column {place} has no name and holds "
                        f"{cell.strip()[:40]!r}; name it, or leave it out (row numbers of a data frame?)"
                    )
            yield reader.line_num, {header[place]: cells[place] for place in named}
    except csv.Error as error:
        raise InputError(f"{source}: line {reader.line_num}: is not valid CSV: {error}") from error


def _check_header(header: list[str], source: str) -> None:
    names = [name for name in header if name]
    if not names:
        raise InputError(f"{source}: is empty, or its first line is; wanted column names there")
    if names[0].lower().startswith("sep="):
        raise InputError(f"{source}: line 1: is a spreadsheet's {names[0][:10]!r}; leave it out")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{source}: line 1: column {twice[:40]!r} is there twice")
    separator = next((mark for mark in _SEPARATORS if len(names) == 1 and mark in names[0]), None)
    if separator:
        raise InputError(
            f"{source}: line 1: the columns are {names[0][:100]!r}, by {_SEPARATORS[separator]}; wanted "
            "them separated by commas (a spreadsheet writes them as CSV UTF-8, comma delimited)"
        )


def _arrow_rows(file: BinaryIO, source: str, kind: str, form: Form) -> Iterator[Row]:
    """Rows of an open Parquet or Arrow file, a few at a time."""
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise InputError(
            f"{source}: is a {kind} file; reading one needs pip install 'vllm-palign[parquet]'"
        ) from error
    row = 0
    try:
        if kind == "Parquet":
            table = parquet.ParquetFile(file, pre_buffer=False)
            columns = form.columns(table.schema_arrow, source)
            batches = table.iter_batches(batch_size=_BATCH, columns=columns, use_threads=False)
        else:
            batches, columns = _ipc_batches(ipc, file, source, form)
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH):
                for value in batch.slice(start, _BATCH).select(columns).to_pylist():
                    row += 1
                    yield Row(f"row {row}", form.record(value, f"{source}: row {row}"))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        first = (str(error).splitlines() or [""])[0]
        raise InputError(f"{source}: is not a readable {kind} file: {first[:200]}") from error


def _ipc_batches(
    ipc: Any, file: BinaryIO, source: str, form: Form
) -> tuple[Iterator[Any], list[str]]:
    """Checked batches of an Arrow file or stream, and the columns to read of them."""
    if file.read(6) == b"ARROW1":
        opened = ipc.open_file(file)
        unchecked = (opened.get_batch(place) for place in range(opened.num_record_batches))
    else:
        file.seek(0)
        opened = ipc.open_stream(file)
        unchecked = iter(opened)
    columns = form.columns(opened.schema, source)

    def checked() -> Iterator[Any]:
        for batch in unchecked:
            batch.validate(full=True)  # Arrow believes a file's offsets
            yield batch

    return checked(), columns


def _held(pipe: BinaryIO, path: Path) -> BinaryIO:
    data = pipe.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{path}: is a pipe of more than {MAX_BYTES // 2**20} MiB; save it as a file, which is "
            "read piece by piece"
        )
    return io.BytesIO(data)
