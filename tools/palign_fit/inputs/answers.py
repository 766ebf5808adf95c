"""Questionnaire answers: 1 (very inaccurate) to 5 (very accurate), about the text as printed.

Minus-keyed items are NOT reversed in an answers file. Data sets that store reversed scores have to be
turned back first: agreement = 6 - score for minus-keyed items. PAPI's own files are known by their
fields and turned back here (``papi``).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from palign_fit.errors import refuse
from palign_fit.inputs.records import SHEET, answer_files, parse_records, read_records
from palign_fit.inputs.rows import Row
from palign_fit.inputs.scale import suspicions
from palign_fit.inputs.sheets import Sheets
from vllm_palign.directions.inventory import Inventory

_ADVICE = (
    'Answers look like {"id": "alice", "answers": {"q1": 4, "q2": null}}, a list of such objects, one '
    "a line (JSONL), or CSV or Parquet with an id column and one column an item; 1 (very inaccurate) "
    "to 5 (very accurate), empty, null or 0 for missing; palign-fit template prints a form to fill in"
)


@dataclass(frozen=True, eq=False)
class Subject:
    """One respondent. ``agreement`` float64 [N] in inventory order: 1..5, NaN where missing."""

    id: str
    agreement: npt.NDArray[np.float64]

    @property
    def answered(self) -> int:
        return int(np.isfinite(self.agreement).sum())


@dataclass(frozen=True)
class Refusal:
    """A respondent that cannot be fitted, and why."""

    id: str
    reason: str


class Answers(Sequence[Subject]):
    """Every subject of an answers file, in file order; one byte an answer, so that populations fit.

    ``ids`` [S]; ``table`` uint8 [S, N] in inventory order, 0 where missing; ``notes`` are what the
    user should know about how the file was read.
    """

    def __init__(
        self, ids: Sequence[str], table: npt.NDArray[np.uint8], notes: Sequence[str] = ()
    ) -> None:
        self.ids, self.table, self.notes = tuple(ids), table, tuple(notes)

    @property
    def used(self) -> npt.NDArray[np.bool_]:
        """Items that somebody answered: bool [N]."""
        return np.asarray((self.table != 0).any(0))

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> Subject: ...
    @overload
    def __getitem__(self, place: slice) -> list[Subject]: ...
    def __getitem__(self, place: int | slice) -> Subject | list[Subject]:
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        cells = self.table[place].astype(np.float64)
        return Subject(self.ids[place], np.where(cells == 0, np.nan, cells))


def read_answers(path: Path, inventory: Inventory) -> Answers:
    """Every subject of an answers file, or of a folder of such files.

    Raises InputError listing every problem. A sheet that is merely too empty to be fitted is none.
    """
    files, others = answer_files(path)
    sources = ((file, read_records(file)) for file in files)
    answers = _checked(sources, inventory, str(path), single=len(files) == 1)
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        note = f"{path}: {len(others)} file(s) left alone that are no answers files: {shown}"
        return Answers(answers.ids, answers.table, [*answers.notes, note])
    return answers


def parse_answers(text: str, inventory: Inventory, *, source: str) -> Answers:
    """Subjects from JSON, JSONL or CSV text; the first character tells which."""
    # Lone surrogates are no text; encoded like this the reader refuses them like any other bytes.
    data = text.encode("utf-8", errors="surrogatepass")
    records = parse_records(io.BytesIO(data), source)
    return _checked([(source, records)], inventory, source, single=True)


def template(inventory: Inventory) -> dict[str, Any]:
    """An answers object with every item missing, for programs to fill in."""
    return {"id": "subject", "answers": {item.id: None for item in inventory.items}}


def form(inventory: Inventory) -> str:
    """A form for people to fill in, as CSV: one line an item with its text, the answer left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SHEET)
    writer.writerow(["id", "(a name for who answers: letters, digits, . _ -)", "subject"])
    writer.writerows([item.id, f"I {item.text}.", ""] for item in inventory.items)
    return text.getvalue()


def _checked(
    sources: Iterable[tuple[Path | str, Iterator[Row]]],
    inventory: Inventory,
    name: str,
    *,
    single: bool,
) -> Answers:
    sheets = Sheets(inventory)
    for source, records in sources:
        sheets.open(str(source))
        for record in records:
            sheets.add(
                record if single else Row(f"{Path(source).name}: {record.place}", record.value)
            )
    if sheets.wrong:
        about_scale = sheets.off_scale.advice
        advice = f"{about_scale}\n{_ADVICE}" if about_scale else _ADVICE
        raise refuse(name, sheets.problems, advice, total=sheets.wrong)
    if not sheets.ids:
        raise refuse(name, ["holds no subjects, wanted at least one"], _ADVICE)
    table = np.frombuffer(sheets.cells, dtype=np.uint8).reshape(len(sheets.ids), -1)
    table.flags.writeable = False
    warnings = [f"{name}: {warning}" for warning in suspicions(table, inventory)]
    return Answers(sheets.ids, table, [*sheets.notes, *warnings])
