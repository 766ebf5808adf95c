"""Sentences whose keying is known: what directions are found from.

Four questionnaires, each in the first person: trait adjectives ("I am talkative."), our statements,
the built-in inventory and the user's own items. A sentence comes with its denial ("I am not
talkative."), which shares its words and turns its meaning round, so that words common to one keying
("don't", "rarely") carry no weight of their own.

Two more are what somebody says, not what he says of himself: answers in everyday situations, of people high and
low in one trait; and answers of a person beside those of a machine that says it is one.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from importlib import resources
from typing import NamedTuple

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
    ANSWERS = 4
    VOICES = 5


VOICE = len(TRAITS)
"""The column of loadings after the five traits: a person speaks, not a machine."""


class Turn(NamedTuple):
    """What a sentence answers: a user's turn, and a system prompt or none."""

    user: str = prompts.OPENINGS[0]
    system: str = ""


OPENED = Turn()
"""What the sentences about oneself answer."""


@dataclass(frozen=True)
class Example:
    """``column`` of the loadings that agreeing moves by ``sign``; ``item``: row of the user's inventory or -1."""

    text: str
    column: int
    sign: int
    kind: Kind
    item: int = -1
    denial: bool = False
    turn: Turn = OPENED


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
    """E sentences and what each answers. ``loadings`` float64 [E, 6]: how saying it moves each trait and VOICE,
    -1, 0 or 1; ``questionnaires`` int64 [E], ``items`` int64 [E] the row of the user's inventory or -1;
    ``denials`` bool [E]."""

    sentences: tuple[str, ...]
    turns: tuple[Turn, ...]
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
        loadings = np.zeros((len(rows), len(TRAITS) + 1))
        loadings[np.arange(len(rows)), [row.column for row in rows]] = [row.sign for row in rows]
        return cls(
            sentences=tuple(row.text for row in rows),
            turns=tuple(row.turn for row in rows),
            loadings=loadings,
            questionnaires=np.array([row.kind for row in rows]),
            items=np.array([row.item for row in rows]),
            denials=np.array([row.denial for row in rows]),
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


def _rows(inventory: Inventory, used: npt.NDArray[np.bool_]) -> Iterator[Example]:
    for column, poles in enumerate(traits.ADJECTIVES[trait] for trait in TRAITS):
        for sign, words in zip((1, -1), poles, strict=True):
            for word in words.split(", "):
                yield Example(f"I am {word}.", column, sign, Kind.ADJECTIVES)
    own = {item.text for item in inventory.items}
    for kind, items in ((Kind.STATEMENTS, statements()), (Kind.BUILT_IN, built_in().items)):
        for item in items:
            if item.text not in own:
                yield from _pair(item, kind, -1)
    for row, item in enumerate(inventory.items):
        if used[row]:
            yield from _pair(item, Kind.ITEMS, row)
    for told in _table("answers"):
        turn = Turn(told["question"], prompts.AS_A_PERSON)
        column = TRAITS.index(told["trait"])
        yield Example(told["high"], column, 1, Kind.ANSWERS, turn=turn)
        yield Example(told["low"], column, -1, Kind.ANSWERS, turn=turn)
    for told in _table("machine"):
        turn = Turn(told["question"])
        yield Example(told["person"], VOICE, 1, Kind.VOICES, turn=turn)
        yield Example(told["machine"], VOICE, -1, Kind.VOICES, turn=turn)


def shipped() -> list[list[Example]]:
    """The examples of each questionnaire that comes with the tool, all of them."""
    rows = list(_rows(Inventory("", ()), np.zeros(0, bool)))
    return [[row for row in rows if row.kind == kind] for kind in Kind if kind != Kind.ITEMS]


def _pair(item: Item, kind: Kind, row: int) -> Iterator[Example]:
    said, denial = prompts.statement(item.text), prompts.statement(denied(item.text))
    column = TRAITS.index(item.trait)
    yield Example(said, column, item.sign, kind, row)
    yield Example(denial, column, -item.sign, kind, row, denial=True)


def statements() -> tuple[Item, ...]:
    """The 360 statements shipped as examples: twelve a facet of the built-in inventory, CC0."""
    return tuple(
        Item(f"s{at}", row["text"], row["trait"], row["facet"], 1 if row["key"] == "+" else -1)
        for at, row in enumerate(_table("statements"), 1)
    )


def _table(name: str) -> csv.DictReader[str]:
    """The rows of a table that comes with the tool."""
    file = resources.files("palign_fit").joinpath(f"data/{name}.csv")
    return csv.DictReader(file.read_text(encoding="utf-8").splitlines())
