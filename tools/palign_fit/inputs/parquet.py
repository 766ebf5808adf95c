"""Parquet: an id column and one column an item, or an answers column (struct, map or JSON text)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from palign_fit.errors import InputError
from palign_fit.inputs import papi
from palign_fit.inputs.files import strict_json
from palign_fit.inputs.row import Row

ROWS = 1024
"""Rows held at a time."""


def parquet_records(file: BinaryIO, source: str) -> Iterator[Row]:
    """Records of an open Parquet file, a few at a time. Raises InputError where it is none."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"{source}: is a Parquet file; reading one needs pip install 'vllm-palign[parquet]'"
        ) from error
    try:
        table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
        _check_columns(table.schema_arrow, source)
        row = 0
        for batch in table.iter_batches(batch_size=ROWS, use_threads=False):
            for value in batch.to_pylist():
                row += 1
                yield Row(f"row {row}", _record(value, f"{source}: row {row}"))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        first = (str(error).splitlines() or [""])[0]
        raise InputError(f"{source}: is not a readable Parquet file: {first[:200]}") from error


def _check_columns(schema: Any, source: str) -> None:
    """Refuse columns that hold no answers before their content is unpacked."""
    from pyarrow import types

    names = schema.names
    if len(set(names)) != len(names):
        raise InputError(f"{source}: a column name is there twice")
    if "id" not in names and not papi.is_papi(names):
        raise InputError(f"{source}: has no id column; the columns are {', '.join(names)[:100]!r}")
    whole = set(names) == {"id", "answers"}
    for name, kind in zip(names, schema.types, strict=True):
        while types.is_dictionary(kind):
            kind = kind.value_type
        plain = (
            types.is_integer(kind)
            or types.is_floating(kind)
            or types.is_boolean(kind)
            or types.is_null(kind)
            or types.is_string(kind)
            or types.is_large_string(kind)
        )
        packed = whole and name == "answers" and (types.is_struct(kind) or types.is_map(kind))
        if not plain and not packed:
            raise InputError(
                f"{source}: column {name[:40]!r} is of type {str(kind)[:80]}, wanted numbers"
            )


def _record(row: dict[str, Any], source: str) -> object:
    """The row as JSON would write it: an id of digits is text, answers are an object."""
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
