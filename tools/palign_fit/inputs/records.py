"""Answers files of every accepted form, as a stream of records in bounded memory.

``read_records`` yields what a file holds, one record at a time: an object with ``id`` and ``answers``,
or a flat record of the PAPI data set (``papi``). Nothing is believed yet; ``sheets`` checks it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from palign_fit.errors import InputError
from palign_fit.inputs.files import MAX_BYTES
from palign_fit.inputs.row import Row

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")
"""What is read out of a folder; a single file is known by its content, whatever its name."""

_PACKED = {
    b"\x1f\x8b": "gzip-compressed; unpack it first",
    b"PK": "a zip archive (Excel files are, too); unpack it, or save the table as CSV",
    b"\xd0\xcf": "an old Excel file; save the table as CSV",
    b"\x28\xb5": "zstd-compressed; unpack it first",
}


def answer_files(path: Path) -> tuple[list[Path], list[str]]:
    """The answers files of ``path``, a file or a folder, and the names in a folder that are none.

    Raises InputError for a folder without answers files.
    """
    if not path.is_dir():
        return [path], []
    inside = sorted(one for one in path.iterdir() if not one.name.startswith("."))
    files = [one for one in inside if one.is_file() and one.suffix.lower() in SUFFIXES]
    if not files:
        raise InputError(
            f"{path}: is a folder without answers files, wanted some ending in "
            f"{', '.join(SUFFIXES)}"
        )
    return files, [one.name for one in inside if one not in files]


def read_records(path: Path) -> Iterator[Row]:
    """Every record of one file. Raises InputError where it stops being readable."""
    try:
        with path.open("rb") as file:
            # A pipe cannot be looked at twice.
            yield from parse_records(file if file.seekable() else _held(file, path), str(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from error


def parse_records(file: BinaryIO, source: str) -> Iterator[Row]:
    """Records of an open, seekable file; its first bytes tell the form. ``source`` names it in errors."""
    start = file.read(4)
    file.seek(0)
    if start == b"PAR1":
        from palign_fit.inputs.parquet import parquet_records

        yield from parquet_records(file, source)
        return
    refuse_packed(start, source)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        yield from _text_records(text, source)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source}: is not UTF-8 text ({error.reason}); save it as UTF-8"
        ) from error
    finally:
        text.detach()


def refuse_packed(start: bytes, source: str) -> None:
    """Name what a file beginning with ``start`` is, if it is packed. Raises InputError."""
    for magic, what in _PACKED.items():
        if start.startswith(magic):
            raise InputError(f"{source}: is {what}")


def _text_records(text: TextIO, source: str) -> Iterator[Row]:
    from palign_fit.inputs.delimited import csv_records
    from palign_fit.inputs.jsons import json_records

    first = ""
    while not first and (chunk := text.read(4096)):
        first = chunk.lstrip()[:1]
    text.seek(0)
    yield from (json_records if first in ("{", "[") else csv_records)(text, source)


def _held(pipe: BinaryIO, path: Path) -> BinaryIO:
    data = pipe.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(
            f"{path}: is a pipe of more than {MAX_BYTES // 2**20} MiB; save it as a file, which is "
            "read piece by piece"
        )
    return io.BytesIO(data)
