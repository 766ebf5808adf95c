"""A person being described: the server's questionnaire half answered, or an answers file, and its Big Five."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_palign.play.words import TRAITS

LONGEST_FILE = 1 << 20
"""Bytes of an answers file of one person, a hundredfold."""

_NO_ANSWER = ("", "0", "null", "none", "na", "nan")


class FormError(ValueError):
    """A questionnaire that is none, or an answers file that says nothing to it; the message is for people."""


@dataclass(frozen=True, eq=False)
class Questionnaire:
    """A server's: items by id, what the answers 1 to 5 mean, shorter forms and usual answers."""

    items: Mapping[str, Mapping[str, str]]
    scale: Mapping[str, str]
    short: Mapping[str, Sequence[str]]
    usual: Mapping[str, float]

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> Questionnaire:
        """Raises FormError for what no palign server answers."""
        try:
            read = cls(
                items={item["id"]: item for item in reply["data"]},
                scale=dict(reply["scale"]),
                short={str(int(n)): list(ids) for n, ids in (reply.get("short") or {}).items()},
                usual=dict(reply.get("usual") or {}),
            )
            known = all(
                item["text"] and item["trait"] and item["key"] for item in read.items.values()
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            known = False
        if not known or any(name not in read.items for ids in read.short.values() for name in ids):
            raise FormError("The server's questionnaire is not one that a palign server gives.")
        return read

    @property
    def lengths(self) -> list[tuple[str, str]]:
        """(shown, value) of each form's length; the whole is ``all``."""
        return [
            *((str(n), str(n)) for n in sorted(map(int, self.short))),
            (f"all {len(self.items)}", "all"),
        ]

    def form(self, length: str) -> list[str]:
        """The ids of one form, in the order they are asked."""
        return list(self.short.get(length, self.items))

    def profile(self, answers: Mapping[str, float], ids: Iterable[str]) -> dict[str, float | None]:
        """Trait letter -> mean of the answers to ``ids``, 1 to 5, turned where a statement says the opposite;
        None where there is no answer."""
        held: dict[str, list[float]] = {trait: [] for trait in TRAITS}
        for name in ids:
            item, answer = self.items.get(name), answers.get(name)
            if item and answer is not None and item["trait"] in held:
                held[item["trait"]].append(answer if item["key"] == "+" else 6 - answer)
        return {trait: sum(some) / len(some) if some else None for trait, some in held.items()}


@dataclass(frozen=True)
class Sheet:
    """One person's answers in the making: the form's ``length``, the place ``at`` in it, and answers by item."""

    length: str = "10"
    at: int = 0
    answers: Mapping[str, int] = field(default_factory=dict)

    def __hash__(self) -> int:
        """By which the page sees that there is something else to show."""
        return hash((self.length, self.at, tuple(self.answers.items())))

    def answer(self, form: Sequence[str], value: int) -> Sheet:
        if self.at >= len(form):
            return self
        return Sheet(self.length, self.at + 1, {**self.answers, form[self.at]: value})

    def move(self, form: Sequence[str], step: int) -> Sheet:
        return replace(self, at=min(max(self.at + step, 0), len(form)))

    def resize(self, length: str, form: Sequence[str]) -> Sheet:
        """Another form: answers stay, the first open item is next."""
        at = next((at for at, name in enumerate(form) if name not in self.answers), len(form))
        return Sheet(length, at, self.answers)

    def given(self, form: Sequence[str]) -> dict[str, int]:
        return {name: self.answers[name] for name in form if name in self.answers}

    def to_text(self) -> str:
        return json.dumps({"length": self.length, "at": self.at, "answers": self.answers})

    @classmethod
    def from_text(cls, text: str, known: Questionnaire) -> Sheet:
        """What the tab has kept; anything else, and answers to items of another questionnaire, is nothing."""
        try:
            kept = json.loads(text)
            answers = {
                str(name): int(value)
                for name, value in kept["answers"].items()
                if name in known.items and int(value) in range(1, 6)
            }
            length, at = str(kept["length"]), int(kept["at"])
        except (ValueError, TypeError, KeyError, AttributeError):
            return cls()
        return cls(length, min(max(at, 0), len(known.form(length))), answers)


def read_answers(data: bytes, known: Questionnaire) -> tuple[str, dict[str, int]]:
    """(id or nothing, answers by item) of one person's file: JSON ``{"id", "answers"}``, also in a list of one;
    CSV with a line an item, as ``palign-fit template`` writes it, or a column an item.

    Raises FormError.
    """
    if len(data) > LONGEST_FILE:
        raise FormError(f"The file holds {len(data)} bytes; answers of one person are far fewer.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FormError("The file is no text in UTF-8; wanted answers as JSON or CSV.") from None
    name, raw = _of_json(text) if text.lstrip()[:1] in ("{", "[") else _of_csv(text, known)
    answers: dict[str, int] = {}
    for item, value in raw.items():
        word = str("" if value is None else value).strip().lower().removesuffix(".0")
        if item not in known.items or word in _NO_ANSWER:
            continue
        if word not in ("1", "2", "3", "4", "5"):
            raise FormError(
                f"The answer to {item} is {str(value)[:20]!r}; wanted 1 to 5, or nothing."
            )
        answers[item] = int(word)
    if not answers:
        raise FormError("The file answers none of this server's statements.")
    return name, answers


def _of_json(text: str) -> tuple[str, dict[str, Any]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormError(f"The file is no JSON: {error}.") from None
    if isinstance(found, list):
        if len(found) != 1:
            raise FormError(
                f"The file holds {len(found)} people; wanted one (palign-fit makes many at once)."
            )
        found = found[0]
    answers = found.get("answers") if isinstance(found, dict) else None
    if not isinstance(answers, dict):
        raise FormError('The file has no answers; wanted {"id": "me", "answers": {"q1": 4, ...}}.')
    return str(found.get("id") or ""), answers


def _of_csv(text: str, known: Questionnaire) -> tuple[str, dict[str, Any]]:
    separator = max(",;\t", key=text.count)
    try:
        read = csv.reader(io.StringIO(text, newline=None), delimiter=separator)
        rows = [row for row in read if any(row)]
    except csv.Error as error:
        raise FormError(f"The file is no table: {error}.") from None
    if len(rows) >= 2 and sum(name in known.items for name in rows[0]) > 1:
        if len(rows) > 2:
            raise FormError(
                f"The file holds {len(rows) - 1} people; wanted one (palign-fit makes many at once)."
            )
        wide: dict[str, Any] = dict(zip(rows[0], rows[1], strict=False))
        return str(wide.get("id", "")), wide
    # As palign-fit template writes it; a spreadsheet may add empty columns behind.
    at = rows[0].index("answer") if rows and "answer" in rows[0] else -1
    column = {row[0]: row[at] for row in rows if len(row) > max(at, 1)}
    return column.get("id", ""), column
