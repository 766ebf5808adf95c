"""Files of the PAPI data set as downloaded (Hugging Face WestlakeNLP/PAPI-300K): i1..i300, scores.

They store scores: minus-keyed items are already reversed (over 150 respondents the means of plus-
and minus-keyed items of a trait correlate by +0.8). Agreement with the printed text is the score
itself for items keyed +, 6 - score for items keyed -.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from palign_fit.errors import InputError
from vllm_palign.directions.inventory import Inventory

ITEMS = tuple(f"i{number}" for number in range(1, 301))
_OWN = frozenset({"case", "sex", "age", "country"})
"""Columns of the data set that no plain answers table has."""


def is_papi(names: object) -> bool:
    """Whether a record with these field names is one of PAPI's: all 300 items, its own columns, no id."""
    return (
        isinstance(names, Collection)
        and len(names) >= len(ITEMS)
        and "id" not in names
        and not _OWN.isdisjoint(names)
        and all(item in names for item in ITEMS)
    )


class Translation:
    """PAPI records into answers about the text as printed, for one inventory."""

    def __init__(self, inventory: Inventory, source: str) -> None:
        unknown = [item.id for item in inventory.items if item.id not in ITEMS]
        if unknown:
            raise InputError(
                f"{source}: is a file of the PAPI data set (fields i1..i300); inventory "
                f"{inventory.name!r} has {len(unknown)} items it does not, such as "
                f"{unknown[0][:40]!r}. Give --inventory a CSV of the IPIP-NEO-300 items, all or "
                "some, with the ids i1 to i300"
            )
        self.minus = [(item.id, item.sign < 0) for item in inventory.items]
        self.row = 0

    @property
    def note(self) -> str:
        turned = sum(minus for _, minus in self.minus)
        return (
            f"read as a file of the PAPI data set: {len(self.minus)} of its 300 items are in the "
            f"inventory; values are scores, so the {turned} items keyed - are turned back (6 - score)"
        )

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """An object with id and answers; the id is the record's case, else its row."""
        self.row += 1
        case = record.get("case")
        if isinstance(case, float) and case.is_integer():
            case = int(case)
        return {
            "id": f"row-{self.row}" if case is None else str(case),
            "answers": {
                item: 6 - record[item] if minus and _is_score(record[item]) else record[item]
                for item, minus in self.minus
            },
        }


def _is_score(value: Any) -> bool:
    """Whether ``value`` can be turned round; 0 is missing, anything else is refused as it stands."""
    return type(value) in (int, float) and 1 <= value <= 5
