"""Reading a questionnaire, and the one that comes with the tool."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from palign_fit.errors import InputError, refuse
from palign_fit.inputs.files import read_text, strict_json
from palign_fit.inputs.rows import csv_rows
from palign_fit.inputs.wording import common_doubt, doubt, fault, normalised
from vllm_palign.directions.inventory import COLUMNS, MAX_ITEMS, MAX_TEXT, Inventory, Item
from vllm_palign.directions.traits import TRAITS
from vllm_palign.persona import ID_PATTERN

_DOUBTS_SHOWN = 12

_BUILT_IN = "palign-ocean-120"
_ADVICE = (
    "An inventory is a CSV file with the columns id,text,trait,facet,key (or a JSON list of such "
    'objects); palign-fit inventory prints one. Example row: q1,"enjoy meeting new people",E,Friendliness,+'
)


def built_in() -> Inventory:
    """The inventory shipped with the tool: 120 items of our own wording, CC0."""
    file = resources.files("palign_fit").joinpath("data/inventory.csv")
    return parse_inventory(file.read_text(encoding="utf-8"), source=_BUILT_IN, name=_BUILT_IN)


def read_inventory(path: Path) -> Inventory:
    """Read a user's inventory, CSV or JSON. Raises InputError listing every problem."""
    return parse_inventory(read_text(path), source=str(path), name=path.stem)


def parse_inventory(text: str, *, source: str, name: str) -> Inventory:
    """An inventory from CSV or JSON text; ``source`` names it in errors."""
    rows = _json_rows(text, source) if text.lstrip()[:1] in ("[", "{") else _csv_rows(text, source)
    if not 1 <= len(rows) <= MAX_ITEMS:
        raise InputError(f"{source}: holds {len(rows)} items, wanted 1 to {MAX_ITEMS}. {_ADVICE}")
    problems: list[str] = []
    items: dict[str, Item] = {}
    doubts: list[str] = []
    for place, row in rows:
        item, wrong = _item(row)
        if item is not None and item.id in items:
            wrong = [f"id {item.id!r} is there twice"]
        problems += [f"{place}: {what}" for what in wrong]
        if item is None:
            continue
        items[item.id] = item
        if (why := doubt(item.text)) is not None:
            doubts.append(f"{place}: text {item.text[:60]!r} {why}")
    if problems:
        raise refuse(source, problems, _ADVICE)
    return Inventory(name, tuple(items.values()), tuple(_notes(source, doubts, items)))


def _notes(source: str, doubts: list[str], items: dict[str, Item]) -> Iterator[str]:
    """Texts that may be fitted as nonsense: the first in words, however many they are."""
    common = common_doubt([item.text for item in items.values()])
    if not doubts and common is not None:
        doubts = [common]
    yield from (f"{source}: {doubted}" for doubted in doubts[:_DOUBTS_SHOWN])
    if doubts:
        more = len(doubts) - _DOUBTS_SHOWN
        yield (
            (f"{source}: and {more} more such texts. " if more > 0 else f"{source}: ")
            + 'Texts complete "I ..." in English ("make friends easily"); what reads like nonsense after "I" '
            "is fitted as nonsense"
        )


def _item(row: dict[str, Any]) -> tuple[Item | None, list[str]]:
    """The item of a row, or what is wrong with it."""
    wrong = [f"column {name!r} is missing" for name in COLUMNS if name not in row]
    wrong += [f"column {name!r} is unknown" for name in row if name not in COLUMNS]
    wrong += [
        f"{name} is {type(value).__name__}, wanted text"
        for name, value in row.items()
        if name in COLUMNS and not isinstance(value, str)
    ]
    if wrong:
        return None, wrong
    cells = {name: row[name].strip() for name in COLUMNS}
    text = normalised(cells["text"])
    if not ID_PATTERN.fullmatch(cells["id"]) or cells["id"] == "id":
        wrong.append(f"id is {cells['id'][:40]!r}, wanted [A-Za-z0-9][A-Za-z0-9._-]{{0,127}}")
    if not text or len(text) > MAX_TEXT or not text.isprintable():
        wrong.append(f"text is {text[:40]!r}, wanted 1 to {MAX_TEXT} printable characters")
    elif (why := fault(text)) is not None:
        wrong.append(f'text is {cells["text"][:60]!r}, which {why}. Texts complete "I ..."')
    if len(cells["trait"]) != 1 or cells["trait"] not in TRAITS:
        wrong.append(f"trait is {cells['trait'][:40]!r}, wanted one of {' '.join(TRAITS)}")
    if len(cells["facet"]) > MAX_TEXT or not cells["facet"].isprintable():
        wrong.append(
            f"facet is {cells['facet'][:40]!r}, wanted at most {MAX_TEXT} printable characters"
        )
    if cells["key"] not in ("+", "-"):
        wrong.append(f"key is {cells['key'][:40]!r}, wanted + or -")
    if wrong:
        return None, wrong
    sign = 1 if cells["key"] == "+" else -1
    return Item(cells["id"], text, cells["trait"], cells["facet"], sign), []


def _csv_rows(text: str, source: str) -> list[tuple[str, dict[str, Any]]]:
    rows: list[tuple[str, dict[str, Any]]] = []
    for line, row in csv_rows(io.StringIO(text, newline=""), source):
        if len(rows) == MAX_ITEMS:
            raise InputError(f"{source}: has more than {MAX_ITEMS} rows, the most that is read")
        rows.append((f"line {line}", dict(row)))
    return rows


def _json_rows(text: str, source: str) -> list[tuple[str, dict[str, Any]]]:
    value = strict_json(text, source)
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise InputError(f"{source}: is JSON but not a list of objects. {_ADVICE}")
    return [(f"entry {place}", row) for place, row in enumerate(value, 1)]
