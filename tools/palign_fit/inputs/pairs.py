"""Preference pairs as people have them for DPO: JSONL of prompt, chosen and rejected."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from palign_fit.errors import InputError, refuse
from palign_fit.inputs.jsons import json_records
from palign_fit.inputs.records import refuse_packed

MAX_PAIRS = 100_000
MAX_TEXT = 20_000
"""Most characters of one text; the fit reads the first few hundred tokens of an answer."""

MAX_TURNS = 64
ROLES = ("system", "user", "assistant")

_KEYS = ("prompt", "chosen", "rejected")
_SHOWN = 12
_ADVICE = (
    'Pairs look like {"prompt": "How was your day?", "chosen": "Wonderful!", "rejected": "Fine."}, one '
    "a line (JSONL) or in a JSON list; each may also be chat messages, as in TRL's conversational form"
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
        for one in self.pairs:
            line = [one.prompt, one.chosen, one.rejected]
            digest.update(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        return digest.hexdigest()


class _Problem(ValueError):
    """One record's fault."""


def read_pairs(path: Path) -> Pairs:
    """The pairs of a JSONL or JSON file. Raises InputError listing every problem."""
    try:
        with path.open("rb") as file:
            return parse_pairs(file, str(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', error)}") from error


def parse_pairs(file: io.BufferedReader, source: str) -> Pairs:
    """As ``read_pairs``, from an open file; ``source`` names it in errors."""
    refuse_packed(file.peek(4)[:4], source)
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        return _collect(text, source)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{source}: is not UTF-8 text ({error.reason}); save it as UTF-8"
        ) from error
    finally:
        text.detach()


def _collect(text: io.TextIOWrapper, source: str) -> Pairs:
    kept: dict[Pair, int] = {}
    problems: list[str] = []
    wrong = read = equal = twice = 0
    ignored: set[str] = set()
    for record in json_records(text, source):
        read += 1
        if read > MAX_PAIRS:
            raise InputError(f"{source}: holds more than {MAX_PAIRS:,} pairs; give fewer")
        try:
            pair = _pair(record.value, ignored)
        except _Problem as error:
            wrong += 1
            if len(problems) < _SHOWN:
                problems.append(f"{record.place.replace('subject', 'pair')}: {error}")
            continue
        if pair.chosen == pair.rejected:
            equal += 1
        elif pair in kept:
            twice += 1
        else:
            kept[pair] = read
    if wrong:
        raise refuse(source, problems, _ADVICE, total=wrong)
    both = [pair for pair in kept if Pair(pair.prompt, pair.rejected, pair.chosen) in kept]
    for pair in both:
        del kept[pair]
    if not kept:
        reason = "holds no pairs" if not read else f"none of {read} pairs prefers anything"
        raise refuse(source, [reason], _ADVICE)
    return Pairs(tuple(kept), tuple(_notes(source, equal, twice, len(both), ignored)))


def _notes(source: str, equal: int, twice: int, both: int, ignored: set[str]) -> Iterator[str]:
    for count, what in (
        (equal, "have chosen and rejected alike"),
        (twice, "are there already"),
        (both, "are there the other way round as well"),
    ):
        if count:
            yield f"{source}: {count} pair(s) {what}: left out"
    if ignored:
        shown = ", ".join(sorted(ignored)[:8])
        yield f"{source}: not used: {shown}"


def _pair(value: object, ignored: set[str]) -> Pair:
    if not isinstance(value, dict) or any(key not in value for key in _KEYS):
        got = ", ".join(map(str, list(value)[:8])) if isinstance(value, dict) else _kind(value)
        raise _Problem(f"is {got[:100]!r}, wanted an object with prompt, chosen and rejected")
    if len(ignored) < _SHOWN:
        ignored.update(repr(key[:40]) for key in value if key not in _KEYS)
    prompt = _turns("prompt", value["prompt"], "user")
    if prompt[-1][0] != "user":
        raise _Problem(f"prompt ends with the {prompt[-1][0]}'s turn, wanted the user's")
    chosen, rejected = (_answer(name, value[name], prompt) for name in ("chosen", "rejected"))
    return Pair(prompt, chosen, rejected)


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
    if isinstance(value, str):
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
    if not isinstance(value, str):
        raise _Problem(f"{name} holds {_kind(value)}, wanted text")
    if not value.strip():
        raise _Problem(f"{name} is empty")
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
