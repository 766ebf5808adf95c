"""Reading what users hand in: bounded, strict, one clear error; writing it back whole or not at all."""

from __future__ import annotations

import csv
import json
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from palign_fit.errors import InputError

MAX_BYTES = 64 * 1024 * 1024
_MAX_CELL = 10_000


def read_text(path: Path) -> str:
    """The UTF-8 text of ``path``, a byte order mark removed. Raises InputError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: is larger than {MAX_BYTES // 2**20} MiB, the most that is read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


STRICT_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
"""Refuses NaN, Infinity and repeated keys, with a ValueError."""


def strict_json(text: str, source: str) -> Any:
    """json.loads that refuses NaN, Infinity and repeated keys. Raises InputError."""
    try:
        return STRICT_JSON.decode(text)
    except RecursionError as error:
        raise InputError(f"{source}: is nested too deeply to be read as JSON") from error
    except ValueError as error:
        raise InputError(f"{source}: is not valid JSON: {error}") from error


def csv_rows(lines: Iterable[str], source: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row by column name) of CSV lines, the first a header. Raises InputError."""
    reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not any(header):
            raise InputError(f"{source}: is empty, or its first line is; wanted column names there")
        if len(set(header)) != len(header):
            raise InputError(f"{source}: line 1: column names {header[:8]} are empty or repeat")
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header) or max(map(len, cells)) > _MAX_CELL:
                raise InputError(
                    f"{source}: line {reader.line_num}: has {len(cells)} cells, wanted "
                    f"{len(header)} as in the header, none over {_MAX_CELL} characters"
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{source}: line {reader.line_num}: is not valid CSV: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in one step: the file is there whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` in one step: the file is there whole or not at all."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
