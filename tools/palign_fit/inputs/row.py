"""One respondent as a file has it."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One respondent as the file has it; ``place`` says where, for errors."""

    place: str
    value: object
