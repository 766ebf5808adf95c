"""What is said to the model: situations, small facts, chats and conversations that the package holds."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from vllm_palign.directions.traits import TRAITS

STORED = "Answer as a person would, about yourself, in two or three sentences."
"""The system prompt under which situations are asked beside none."""

PARTS = {"test": "situations", "train": "answers"}
"""Which questions: those that nothing is ever fitted on, or those that fits and choices may use."""

_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*")


@dataclass(frozen=True)
class Situation:
    """A question about what one does, meant to show ``trait``."""

    question: str
    trait: str


@dataclass(frozen=True)
class Fact:
    """``kind`` fact, sum or format. ``answer``: alternatives between ``|``, a number, a regular expression."""

    kind: str
    language: str
    question: str
    answer: str

    def right(self, said: str) -> bool:
        """Whether ``said`` names the fact, ends in the sum's number, or is of the form that was ordered."""
        text = said.strip()
        if self.kind == "format":
            return re.fullmatch(self.answer, text, re.IGNORECASE) is not None
        if self.kind == "sum":
            found = [_value(one) for one in _NUMBER.findall(text)]
            return bool(found) and found[-1] == _value(self.answer)
        return any(
            re.search(rf"(?<!\w){re.escape(one.strip())}(?!\w)", text, re.IGNORECASE)
            for one in self.answer.split("|")
        )


@dataclass(frozen=True)
class Chat:
    """What a user asks for in ordinary use; ``kind`` english, german or code."""

    kind: str
    text: str


def situations(part: str, each: int | None = None) -> list[Situation]:
    """The questions of ``part``, ``each`` a trait (None: all), in the order of traits."""
    found = [Situation(row["question"], row["trait"]) for row in _rows(PARTS[part])]
    by_trait = [[one for one in found if one.trait == trait] for trait in TRAITS]
    return [one for questions in by_trait for one in questions[:each]]


def facts() -> list[Fact]:
    return [
        Fact(row["kind"], row["language"], row["question"], row["answer"]) for row in _rows("facts")
    ]


def chats() -> list[Chat]:
    return [Chat(row["kind"], row["text"]) for row in _rows("chats")]


def scripts() -> dict[str, list[str]]:
    """What the user of each kind says, turn by turn."""
    found: dict[str, list[str]] = {}
    for row in sorted(_rows("conversations"), key=lambda row: int(row["turn"])):
        found.setdefault(row["script"], []).append(row["user"])
    return dict(sorted(found.items()))


def _rows(name: str) -> Iterator[dict[str, str]]:
    file = resources.files("palign_fit").joinpath(f"data/{name}.csv")
    with file.open(encoding="utf-8") as lines:
        yield from csv.DictReader(lines)


def _value(number: str) -> float:
    """Of a number as people write it; a comma before three digits groups thousands. NaN of what is none: a date, a
    list."""
    text = re.sub(r",(?=\d{3}(?!\d))", "", number).rstrip(".,")
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return math.nan
