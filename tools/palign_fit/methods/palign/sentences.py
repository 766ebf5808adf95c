"""Sentences whose keying is known: what directions are found from.

Four questionnaires, each in the first person: trait adjectives ("I am talkative."), our statements,
the built-in inventory and the user's own items. A sentence comes with its denial ("I am not
talkative."), which shares its words and turns its meaning round, so that words common to one keying
("don't", "rarely") carry no weight of their own.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from importlib import resources

import numpy as np
import numpy.typing as npt

from palign_fit.inputs import traits
from palign_fit.inputs.inventory import built_in
from palign_fit.model import prompts
from vllm_palign.directions.inventory import Inventory, Item
from vllm_palign.directions.traits import TRAITS


class Kind(IntEnum):
    """The questionnaires, in the order of the examples."""

    ADJECTIVES = 0
    STATEMENTS = 1
    BUILT_IN = 2
    ITEMS = 3


_DENIED = (
    ("am not ", "am "),
    ("am ", "am not "),
    ("was not ", "was "),
    ("wasn't ", "was "),
    ("was ", "was not "),
    ("don't ", ""),
    ("do not ", ""),
    ("didn't ", "did "),
    ("did not ", "did "),
    ("can't ", "can "),
    ("cannot ", "can "),
    ("couldn't ", "could "),
    ("wouldn't ", "would "),
    ("shouldn't ", "should "),
    ("won't ", "will "),
    ("will not ", "will "),
    ("haven't ", "have "),
    ("have not ", "have "),
    ("hadn't ", "had "),
    ("had not ", "had "),
    ("had better not ", "had better "),
    ("had better ", "had better not "),
    ("used to ", "did not use to "),
    ("never ", "often "),
    ("rarely ", "often "),
    ("seldom ", "often "),
)
_MODAL = re.compile(r"(can|could|will|would|should|may|might|must) ")
_PERFECT = re.compile(
    r"(have|had) (?=(?:(?:always|often|ever|long|just|already|sometimes) )?"
    r"(?:been|had|done|gone|seen|known|met|made|lost|found|felt|taken|given|got|told|said|thought|"
    r"tried|learned|failed|changed|lied|hurt|broken|written|stolen)\b)"
)
"""Before a participle; "have mixed feelings" is none."""

_NEVER = re.compile(r"(have|had|will|was|am) never ")


@dataclass(frozen=True, eq=False)
class Examples:
    """E sentences. ``loadings`` float64 [E, 5]: how agreeing moves each trait, -1, 0 or 1;
    ``questionnaires`` int64 [E], ``items`` int64 [E] the row of the user's inventory or -1;
    ``denials`` bool [E]."""

    sentences: tuple[str, ...]
    loadings: npt.NDArray[np.float64]
    questionnaires: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    denials: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, inventory: Inventory, used: npt.NDArray[np.bool_]) -> Examples:
        """Every example, with the items ``used`` bool [N] of ``inventory``.

        A sentence of the user's inventory is in no other questionnaire, used or not.
        """
        rows = list(_rows(inventory, used))
        loadings = np.zeros((len(rows), len(TRAITS)))
        for row, (_, trait, sign, *_rest) in enumerate(rows):
            loadings[row, TRAITS.index(trait)] = sign
        return cls(
            sentences=tuple(row[0] for row in rows),
            loadings=loadings,
            questionnaires=np.array([row[3] for row in rows]),
            items=np.array([row[4] for row in rows]),
            denials=np.array([row[5] for row in rows]),
        )


def denied(text: str) -> str:
    """The opposite of what follows "I": "make friends easily" -> "do not make friends easily"."""
    never = _NEVER.match(text)
    if never:
        return f"{never[1]} often {text[never.end() :]}"
    for start, instead in _DENIED:
        if text.startswith(start):
            return instead + text.removeprefix(start)
    modal = _MODAL.match(text) or _PERFECT.match(text)
    if modal:
        auxiliary, rest = modal[1], text[modal.end() :]
        if rest.startswith("not "):
            return f"{auxiliary} {rest.removeprefix('not ')}"
        return f"{auxiliary} not {rest}"
    if text.startswith("had "):
        return f"did not have {text.removeprefix('had ')}"
    return f"do not {text}"


def _rows(
    inventory: Inventory, used: npt.NDArray[np.bool_]
) -> Iterator[tuple[str, str, int, int, int, bool]]:
    """(sentence, trait, sign, questionnaire, item, is a denial)"""
    for trait, poles in traits.ADJECTIVES.items():
        for sign, words in zip((1, -1), poles, strict=True):
            for word in words.split(", "):
                yield f"I am {word}.", trait, sign, Kind.ADJECTIVES, -1, False
    own = {item.text for item in inventory.items}
    for questionnaire, items in (
        (Kind.STATEMENTS, statements()),
        (Kind.BUILT_IN, built_in().items),
    ):
        for item in items:
            if item.text not in own:
                yield from _pair(item, questionnaire, -1)
    for row, item in enumerate(inventory.items):
        if used[row]:
            yield from _pair(item, Kind.ITEMS, row)


def shipped() -> list[list[str]]:
    """The sentences of each questionnaire that comes with the tool, all of them."""
    none = Inventory("", ())
    rows = list(_rows(none, np.zeros(0, bool)))
    kinds = (Kind.ADJECTIVES, Kind.STATEMENTS, Kind.BUILT_IN)
    return [[row[0] for row in rows if row[3] == kind] for kind in kinds]


def sentences_read(items: int) -> int:
    """How many sentences a fit with so many items reads, at most."""
    return sum(map(len, shipped())) + 2 * items


def _pair(
    item: Item, questionnaire: int, row: int
) -> Iterator[tuple[str, str, int, int, int, bool]]:
    said, denial = prompts.statement(item.text), prompts.statement(denied(item.text))
    yield said, item.trait, item.sign, questionnaire, row, False
    yield denial, item.trait, -item.sign, questionnaire, row, True


def statements() -> tuple[Item, ...]:
    """The 360 statements shipped as examples: twelve a facet of the built-in inventory, CC0."""
    file = resources.files("palign_fit").joinpath("data/statements.csv")
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return tuple(
        Item(f"s{at}", row["text"], row["trait"], row["facet"], 1 if row["key"] == "+" else -1)
        for at, row in enumerate(rows, 1)
    )
