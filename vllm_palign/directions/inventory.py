"""Questionnaires: items that complete "I ...", their traits and keyings."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256

import numpy as np

from vllm_palign.directions import norm
from vllm_palign.directions.norm import NormSample
from vllm_palign.directions.numbers import Mask, Reals
from vllm_palign.directions.traits import TRAITS, TYPICAL

COLUMNS = ("id", "text", "trait", "facet", "key")
MAX_ITEMS = 2000
MAX_TEXT = 300

SCALE = {
    "1": "very inaccurate",
    "2": "moderately inaccurate",
    "3": "neither accurate nor inaccurate",
    "4": "moderately accurate",
    "5": "very accurate",
}
"""What answers mean: how accurately the statement, as printed, describes who answers."""


@dataclass(frozen=True)
class Item:
    """One statement. ``text`` completes "I ..."; ``sign`` is +1 or -1, how agreeing moves ``trait``."""

    id: str
    text: str
    trait: str
    facet: str
    sign: int


@dataclass(frozen=True)
class Inventory:
    """Items in file order; ``digest`` is the sha256 of their content, whatever the file looked like.

    ``notes`` are what its user should know about how the file was read.
    """

    name: str
    items: tuple[Item, ...]
    notes: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def digest(self) -> str:
        return sha256(self.to_csv().encode()).hexdigest()

    def to_csv(self) -> str:
        """The inventory as the CSV file it can be read from again."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(self.rows())
        return text.getvalue()

    def to_json(self) -> str:
        """The inventory as the JSON file it can be read from again."""
        return json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in self.rows()])

    def rows(self) -> list[list[str]]:
        """The items as ``COLUMNS`` of text."""
        return [
            [item.id, item.text, item.trait, item.facet, "+" if item.sign > 0 else "-"]
            for item in self.items
        ]

    @cached_property
    def usual(self) -> Reals:
        """The usual answer to each item, float64 [N]: to one keyed + its trait's TYPICAL mean, to one keyed -
        its mirror image."""
        return np.array([3 + item.sign * (TYPICAL[item.trait] - 3) for item in self.items])

    @cached_property
    def signs(self) -> Reals:
        """How agreeing with each item moves its trait, +1 or -1: float64 [N]."""
        return np.array([float(item.sign) for item in self.items])

    @cached_property
    def of_trait(self) -> Mask:
        """Which items measure each trait: bool [5, N]."""
        return np.array([[item.trait == trait for item in self.items] for trait in TRAITS])

    @cached_property
    def people(self) -> NormSample:
        """Other people's answers to these items."""
        return norm.answered(
            self.of_trait, self.signs, [(item.trait, item.facet) for item in self.items]
        )

    @cached_property
    def places(self) -> dict[str, int]:
        """Item id -> its place."""
        return {item.id: place for place, item in enumerate(self.items)}
