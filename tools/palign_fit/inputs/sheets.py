"""Records checked into a table of answers, one byte each, every problem collected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palign_fit.errors import InputError
from palign_fit.inputs import papi
from palign_fit.inputs.rows import Row
from palign_fit.inputs.scale import OffScale
from vllm_palign.directions.inventory import Inventory
from vllm_palign.persona import is_persona_id

MAX_CELLS = 400_000_000
"""Most answers that are held: a million people on 400 items."""

_SHOWN = 12


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
