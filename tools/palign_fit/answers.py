"""Questionnaire answers: 1 (very inaccurate) to 5 (very accurate), about the text as printed.

Minus-keyed items are NOT reversed in an answers file. Data sets that store reversed scores (PAPI
does) have to be turned back first: agreement = 6 - score for minus-keyed items.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from palign_fit.errors import InputError, refuse
from palign_fit.files import csv_rows, read_text, strict_json
from palign_fit.inventory import Inventory
from vllm_palign.persona import is_persona_id

MAX_SUBJECTS = 10_000
_ADVICE = (
    'Answers look like {"id": "alice", "answers": {"q1": 4, "q2": null}}, a list of such objects, one '
    "a line (JSONL), or CSV with an id column and one column an item; 1 (very inaccurate) to 5 (very "
    "accurate), empty, null or 0 for missing; palign-fit template prints a form to fill in"
)


@dataclass(frozen=True, eq=False)
class Subject:
    """One respondent. ``agreement`` float64 [N] in inventory order: 1..5, NaN where missing."""

    id: str
    agreement: npt.NDArray[np.float64]

    @property
    def answered(self) -> int:
        return int(np.isfinite(self.agreement).sum())


def read_answers(path: Path, inventory: Inventory) -> list[Subject]:
    """Every subject of an answers file. Raises InputError listing every problem."""
    return parse_answers(read_text(path), inventory, source=str(path))


def parse_answers(text: str, inventory: Inventory, *, source: str) -> list[Subject]:
    """Subjects from JSON, JSONL or CSV text; the first character tells which."""
    rows = _json_rows(text, source) if text.lstrip()[:1] in ("{", "[") else _csv_rows(text, source)
    if not 1 <= len(rows) <= MAX_SUBJECTS:
        raise InputError(
            f"{source}: holds {len(rows)} subjects, wanted 1 to {MAX_SUBJECTS}. {_ADVICE}"
        )
    place_of = {item.id: place for place, item in enumerate(inventory.items)}
    problems: list[str] = []
    subjects: dict[str, Subject] = {}
    for place, row in rows:
        subject, wrong = _subject(row, place_of, inventory.name)
        # Two names that differ only in case are one file on some file systems.
        if subject is not None and subject.id.lower() in subjects:
            wrong = [f"id {subject.id!r} is there twice"]
        problems += [f"{place}: {what}" for what in wrong]
        if subject is not None:
            subjects[subject.id.lower()] = subject
    if problems:
        raise refuse(source, problems, _ADVICE)
    return list(subjects.values())


def template(inventory: Inventory) -> dict[str, Any]:
    """An answers object with every item missing, for people to fill in."""
    return {"id": "subject", "answers": {item.id: None for item in inventory.items}}


def _subject(
    row: Any, place_of: dict[str, int], inventory_name: str
) -> tuple[Subject | None, list[str]]:
    """The subject of one JSON object, or what is wrong with it."""
    if not isinstance(row, dict) or set(row) != {"id", "answers"}:
        got = sorted(map(str, row))[:8] if isinstance(row, dict) else type(row).__name__
        return None, [f"is {got}, wanted an object with id and answers"]
    name, answers = row["id"], row["answers"]
    wrong = []
    if not is_persona_id(name):
        wrong.append(
            f"id is {str(name)[:40]!r}, wanted text like [A-Za-z0-9][A-Za-z0-9._-]{{0,127}}"
        )
    if not isinstance(answers, dict):
        return None, [*wrong, f"answers is {type(answers).__name__}, wanted an object"]
    agreement = np.full(len(place_of), np.nan)
    for item, value in answers.items():
        if item not in place_of:
            wrong.append(f"item {item[:40]!r} is not in inventory {inventory_name!r}")
        elif value is None:
            continue
        elif type(value) not in (int, float) or value not in (0, 1, 2, 3, 4, 5):
            wrong.append(f"item {item!r} is {str(value)[:40]!r}, wanted 1 to 5, or null if missing")
        elif value:
            agreement[place_of[item]] = value
    if not wrong and not np.isfinite(agreement).any():
        wrong.append("every answer is missing, wanted at least some")
    return (None, wrong) if wrong else (Subject(name, agreement), [])


def _json_rows(text: str, source: str) -> list[tuple[str, Any]]:
    lines = [(at, line) for at, line in enumerate(text.splitlines(), 1) if line.strip()]
    if text.lstrip().startswith("{") and len(lines) > 1 and _is_object(lines[0][1]):
        return [(f"line {at}", strict_json(line, f"{source}: line {at}")) for at, line in lines]
    value = strict_json(text, source)
    rows = value if isinstance(value, list) else [value]
    return [(f"subject {place}", row) for place, row in enumerate(rows, 1)]


def _is_object(line: str) -> bool:
    """Whether a first line is a JSON object by itself, so that the file is JSONL."""
    try:
        return isinstance(strict_json(line, ""), dict)
    except InputError:
        return False


def _csv_rows(text: str, source: str) -> list[tuple[str, Any]]:
    rows = []
    for line, row in csv_rows(text, source, MAX_SUBJECTS):
        if "id" not in row:
            raise InputError(f"{source}: line 1: has no id column. {_ADVICE}")
        answers = {name: _number(cell) for name, cell in row.items() if name != "id"}
        rows.append((f"line {line}", {"id": row["id"].strip(), "answers": answers}))
    return rows


def _number(cell: str) -> Any:
    """A CSV cell as JSON would write it; text that is no digit stays text and is refused later."""
    cell = cell.strip()
    if not cell:
        return None
    # Tables with gaps often come out of a data frame as "4.0".
    return int(cell[0]) if re.fullmatch(r"[0-9](\.0+)?", cell, re.ASCII) else cell
