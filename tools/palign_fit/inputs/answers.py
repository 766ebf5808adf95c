"""Questionnaire answers, read and checked into one byte each: 1 (very inaccurate) to 5 (very accurate), about the text
as printed.

Minus-keyed items are NOT reversed in an answers file. Data sets that store reversed scores have to be
turned back first: agreement = 6 - score for minus-keyed items. PAPI's own files are known by their
fields and turned back here (``papi``). Every problem of a file is collected before it is refused.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from palign_fit.errors import InputError, refuse
from palign_fit.inputs import papi
from palign_fit.inputs.records import SHEET, answer_files, parse_records, read_records
from palign_fit.inputs.rows import Row
from palign_fit.inputs.scale import OffScale, suspicions
from vllm_palign.directions.inventory import Inventory
from vllm_palign.persona import is_persona_id

_ADVICE = (
    'Answers look like {"id": "alice", "answers": {"q1": 4, "q2": null}}, a list of such objects, one '
    "a line (JSONL), or CSV or Parquet with an id column and one column an item; 1 (very inaccurate) "
    "to 5 (very accurate), empty, null or 0 for missing; palign-fit template prints a form to fill in"
)

MAX_CELLS = 400_000_000
"""Most answers that are held: a million people on 400 items."""

_SHOWN = 12


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


class Sheets:
    """What was read so far: ``ids``, and ``cells`` with one byte an answer, 0 where missing.

    ``add`` checks records and collects what is wrong in ``problems``: the first dozen in words, all
    of them counted in ``wrong``.
    """

    def __init__(self, inventory: Inventory) -> None:
        self.ids: list[str] = []
        self.cells = bytearray()
        self.problems: list[str] = []
        self.wrong = 0
        self.notes: list[str] = []
        self.off_scale = OffScale()
        self._inventory = inventory
        self._places = {item.id: place for place, item in enumerate(inventory.items)}
        self._meant = {item.id.lower(): item.id for item in inventory.items}
        self._seen: dict[str, str] = {}
        self._names: list[str] = []
        self._order: list[int] = []
        self._turn: papi.Translation | None = None

    def open(self, source: str) -> None:
        """Say that the next record is the first of ``source``."""
        self._turn = None
        self._source, self._first = source, True

    def add(self, record: Row) -> None:
        """Check one record and keep its answers. Raises InputError where too many are held."""
        value = record.value
        if self._first and isinstance(value, dict) and papi.is_papi(value):
            self._turn = papi.Translation(self._inventory, self._source)
            self.notes.append(f"{self._source}: {self._turn.note}")
        self._first = False
        if self._turn is not None and isinstance(value, dict) and papi.is_papi(value):
            value = self._turn(value)
        # The statements of a form are there for who fills it in.
        if not isinstance(value, dict) or set(value) - {"statements"} != {"id", "answers"}:
            got = sorted(map(str, value))[:8] if isinstance(value, dict) else type(value).__name__
            self._problem(record, f"is {got}, wanted an object with id and answers")
            return
        name, answers = value["id"], value["answers"]
        right = self._name(record, name)
        if not isinstance(answers, dict):
            self._problem(record, f"answers is {type(answers).__name__}, wanted an object")
            return
        sheet = self._quick(answers) or self._slow(record, answers)
        if right and sheet is not None and not self.wrong:
            self.ids.append(name)
            self.cells += sheet
            if len(self.cells) > MAX_CELLS:
                raise InputError(
                    f"{self._source}: holds more than {MAX_CELLS:,} answers, the most that is read; "
                    "split it"
                )

    def _name(self, record: Row, name: Any) -> bool:
        if not is_persona_id(name):
            self._problem(
                record,
                f"id is {str(name)[:40]!r}, wanted text like [A-Za-z0-9][A-Za-z0-9._-]{{0,127}}",
            )
            return False
        # Two names that differ only in case are one file on some file systems.
        key = name.lower()
        if key in self._seen:
            self._problem(
                record,
                f"id {name!r} is there twice, first in {self._seen[key]}; capitals make no other name",
            )
            return False
        self._seen[key] = record.place
        return True

    def _quick(self, answers: Mapping[str, Any]) -> bytes | None:
        """The sheet of an object like the one before: the same items, whole numbers or null."""
        if list(answers) != self._names or not self._names:
            return None
        cells = list(answers.values())
        if not {int, type(None)}.issuperset(map(type, cells)):
            return None
        try:
            given = bytes(cell or 0 for cell in cells)
        except ValueError:
            return None
        if max(given) > 5:
            return None
        sheet = bytearray(len(self._places))
        for place, cell in zip(self._order, given, strict=True):
            sheet[place] = cell
        return bytes(sheet)

    def _slow(self, record: Row, answers: Mapping[str, Any]) -> bytes | None:
        """The sheet of any object, or None and its problems."""
        before = self.wrong
        sheet = bytearray(len(self._places))
        for item, value in answers.items():
            place = self._places.get(item)
            if place is None:
                meant = self._meant.get(item.lower())
                self._problem(
                    record,
                    f"item {item[:40]!r} is not in inventory {self._inventory.name!r}"
                    + (f", which has {meant!r}" if meant else ""),
                )
            elif value is None:
                continue
            elif type(value) not in (int, float) or value not in (0, 1, 2, 3, 4, 5):
                self.off_scale.add(value)
                self._problem(
                    record,
                    f"item {item!r} is {str(value)[:40]!r}, wanted 1 to 5, or null if missing",
                )
            else:
                sheet[place] = int(value)
        if self.wrong > before:
            return None
        self._names, self._order = list(answers), [self._places[item] for item in answers]
        return bytes(sheet)

    def _problem(self, record: Row, what: str) -> None:
        self.wrong += 1
        if len(self.problems) < _SHOWN:
            self.problems.append(f"{record.place}: {what}")
