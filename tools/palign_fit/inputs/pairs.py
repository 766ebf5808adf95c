"""Preference pairs as people have them for DPO: prompt, chosen and rejected, as JSONL or Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from palign_fit.errors import InputError, refuse
from palign_fit.inputs.jsons import json_records
from palign_fit.inputs.rows import Form, Row, first_character, parse_rows, read_rows

MAX_PAIRS = 100_000
MAX_TEXT = 20_000
"""Most characters of one text; the fit reads the first few hundred tokens of an answer."""

MAX_TURNS = 64
ROLES = ("system", "user", "assistant")

_KEYS = ("prompt", "chosen", "rejected")
_SHOWN = 12
_ADVICE = (
    'Pairs look like {"prompt": "How was your day?", "chosen": "Wonderful!", "rejected": "Fine."}, one '
    "a line (JSONL), in a JSON list, or as columns of a Parquet file; each may also be chat messages, as in "
    "TRL's conversational form, and without prompt what both conversations begin with is one"
)

Turn = tuple[str, str]
"""Role and content."""


@dataclass(frozen=True)
class Pair:
    """Two answers to the same conversation, which ends with the user's turn."""

    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Pairs:
    """What is left of a file, in its order; ``notes`` are what its user should know."""

    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """sha256 of the content, whatever the file looked like."""
        digest = sha256()
        for pair in self.pairs:
            line = [pair.prompt, pair.chosen, pair.rejected]
            digest.update(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()


class _Problem(ValueError):
    """One record's fault."""


class _Empty(_Problem):
    """One record without one of its texts: data sets have a few, which nobody can mend."""


def read_pairs(path: Path) -> Pairs:
    """The pairs of a JSONL, JSON, Parquet or Arrow file. Raises InputError listing every problem."""
    ignored: set[str] = set()
    return _collect(read_rows(path, _form(ignored)), str(path), ignored)


def parse_pairs(file: BinaryIO, source: str) -> Pairs:
    """As ``read_pairs``, from an open, seekable file; ``source`` names it in errors."""
    ignored: set[str] = set()
    return _collect(parse_rows(file, source, _form(ignored)), source, ignored)


def _form(ignored: set[str]) -> Form:
    def columns(schema: Any, source: str) -> list[str]:
        used = [name for name in schema.names if name in _KEYS]
        if len(used) != len(set(used)) or not {"chosen", "rejected"} <= set(used):
            raise InputError(
                f"{source}: the columns are {', '.join(schema.names)[:100]!r}, wanted prompt, chosen and "
                "rejected, each once"
            )
        ignored.update(repr(name[:40]) for name in schema.names[:_SHOWN] if name not in _KEYS)
        return used

    return Form(_json_pairs, columns)


def _json_pairs(text: TextIO, source: str) -> Iterator[Row]:
    first = first_character(text)
    if first not in ("{", "[", ""):
        raise InputError(f"{source}: is not valid JSON: begins with {first!r}. {_ADVICE}")
    yield from json_records(text, source)


@dataclass
class _LeftOut:
    """Pairs that say nothing, and why."""

    equal: int = 0
    twice: int = 0
    both: int = 0
    empty: list[str] = field(default_factory=list)
    """Where, and which text; the first dozen."""

    emptied: int = 0

    def notes(self) -> Iterator[str]:
        for count, what in (
            (self.equal, "have chosen and rejected alike"),
            (self.twice, "are there already"),
            (self.both, "are there the other way round as well"),
        ):
            if count:
                yield f"{count} pair(s) {what}: left out"
        if self.emptied:
            yield f"{self.emptied} pair(s) lack a text: left out, the first is {self.empty[0]}"


def _collect(rows: Iterable[Row], source: str, ignored: set[str]) -> Pairs:
    kept: dict[Pair, None] = {}
    problems: list[str] = []
    left_out = _LeftOut()
    wrong = read = 0
    for row in rows:
        read += 1
        if read > MAX_PAIRS:
            raise InputError(f"{source}: holds more than {MAX_PAIRS:,} pairs; give fewer")
        place = row.place.replace("subject", "pair")
        try:
            pair = _pair(row.value, ignored)
        except _Empty as error:
            left_out.emptied += 1
            if len(left_out.empty) < _SHOWN:
                left_out.empty.append(f"{place}: {error}")
            continue
        except _Problem as error:
            wrong += 1
            if len(problems) < _SHOWN:
                problems.append(f"{place}: {error}")
            continue
        if pair.chosen == pair.rejected:
            left_out.equal += 1
        elif pair in kept:
            left_out.twice += 1
        else:
            kept[pair] = None
    if wrong:
        raise refuse(source, problems, _ADVICE, total=wrong)
    both = [pair for pair in kept if Pair(pair.prompt, pair.rejected, pair.chosen) in kept]
    left_out.both = len(both)
    for pair in both:
        del kept[pair]
    if not kept:
        reason = "holds no pairs" if not read else f"none of {read} pairs prefers anything"
        raise refuse(source, [reason, *left_out.empty], _ADVICE)
    notes = [f"{source}: {note}" for note in left_out.notes()]
    if ignored:
        notes.append(f"{source}: not used: {', '.join(sorted(ignored)[:8])}")
    return Pairs(tuple(kept), tuple(notes))


def _pair(value: object, ignored: set[str]) -> Pair:
    if not isinstance(value, dict) or not {"chosen", "rejected"} <= set(value):
        raise _unlike(value)
    if len(ignored) < _SHOWN:
        ignored.update(repr(key[:40]) for key in value if key not in _KEYS)
    if value.get("prompt") is None and all(isinstance(value[name], list) for name in _KEYS[1:]):
        prompt = _shared(value["chosen"], value["rejected"])
    elif "prompt" in value:
        prompt = _turns("prompt", value["prompt"], "user")
    else:
        raise _unlike(value)
    if prompt[-1][0] != "user":
        raise _Problem(f"prompt ends with the {prompt[-1][0]}'s turn, wanted the user's")
    chosen, rejected = (_answer(name, value[name], prompt) for name in ("chosen", "rejected"))
    return Pair(prompt, chosen, rejected)


def _unlike(value: object) -> _Problem:
    got = ", ".join(map(str, list(value)[:8])) if isinstance(value, dict) else _kind(value)
    return _Problem(
        f"is {got[:100]!r}, wanted an object with prompt, chosen and rejected (without prompt both must "
        "be lists of messages)"
    )


def _shared(chosen: list[Any], rejected: list[Any]) -> tuple[Turn, ...]:
    """What both conversations begin with, up to a user's turn: the prompt that TRL calls implicit."""
    turns = [_turns("chosen", chosen, ""), _turns("rejected", rejected, "")]
    common = list(takewhile(lambda pair: pair[0] == pair[1], zip(*turns, strict=False)))
    while common and common[-1][0][0] != "user":
        common.pop()
    if not common:
        raise _Problem(
            "has no prompt, and chosen and rejected do not begin with the same user's turn"
        )
    return tuple(turn for turn, _ in common)


def _answer(name: str, value: object, prompt: tuple[Turn, ...]) -> str:
    """The one answer; some data sets repeat the prompt before it."""
    turns = _turns(name, value, "assistant")
    if turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0][0] != "assistant":
        raise _Problem(
            f"{name} is {[role for role, _ in turns][:8]} after the prompt, wanted one turn of the "
            "assistant"
        )
    return turns[0][1]


def _turns(name: str, value: object, role: str) -> tuple[Turn, ...]:
    """``value`` as turns; bare text is one of ``role``."""
    if value is None or isinstance(value, str):
        return ((role, _text(name, value)),)
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TURNS:
        size = f" of {len(value)}" if isinstance(value, list) else ""
        raise _Problem(f"{name} is {_kind(value)}{size}, wanted text or 1 to {MAX_TURNS} messages")
    return tuple(_turn(name, message) for message in value)


def _turn(name: str, message: Any) -> Turn:
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise _Problem(f"{name} holds a message that is no object with role and content")
    if message["role"] not in ROLES:
        raise _Problem(
            f"{name} has a message of {str(message['role'])[:40]!r}, wanted {', '.join(ROLES)}"
        )
    return message["role"], _text(name, message["content"])


def _text(name: str, value: object) -> str:
    if value is None:
        raise _Empty(f"{name} is null, wanted text")
    if not isinstance(value, str):
        raise _Problem(f"{name} holds {_kind(value)}, wanted text")
    if not value.strip():
        raise _Empty(f"{name} is empty")
    if len(value) > MAX_TEXT:
        raise _Problem(f"{name} has {len(value)} characters, wanted at most {MAX_TEXT}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _Problem(f"{name} holds half of a character (a lone surrogate)")
    return value


def _kind(value: object) -> str:
    return {
        "NoneType": "null", "list": "a list", "dict": "an object", "str": "text",
        "bool": "true or false", "int": "a number", "float": "a number",
    }.get(type(value).__name__, type(value).__name__)  # fmt: skip
