"""A persona made there and then: the body of a PUT that brings answers or trait values."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from vllm_palign.container import STRICT_JSON
from vllm_palign.directions import Directions
from vllm_palign.errors import DirectionsMissing, PersonaInvalid
from vllm_palign.persona import Persona

_AROUND, _FOR_ITEM = 16 * 1024, 64
"""Bytes for a description, fields and blanks; and, beside twice its id, for an item's answer."""
MAX_DESCRIPTION = 1000
"""Characters."""

# Controls, ends of lines and paragraphs, halves of a character, and what turns the direction of the text around it.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_FIELDS = ("answers", "traits", "description")

BODY = {
    "description": "Answers to `GET /v1/questionnaire`, or trait values: exactly one of the two.",
    "schema": {
        "type": "object",
        "properties": {
            "answers": {
                "description": "Item id to answer, 1 (very inaccurate) to 5 (very accurate); null is no answer.",
                "type": "object",
                "additionalProperties": {"type": ["integer", "null"], "minimum": 1, "maximum": 5},
            },
            "traits": {
                "description": "Trait, by name or first letter, to standard deviations over people.",
                "type": "object",
                "additionalProperties": {"type": ["number", "null"], "minimum": -3, "maximum": 3},
            },
            "description": {"type": ["string", "null"], "maxLength": MAX_DESCRIPTION},
        },
        "additionalProperties": False,
        "oneOf": [{"required": ["answers"]}, {"required": ["traits"]}],
    },
    "examples": {
        "answers": {
            "summary": "Answers to a questionnaire",
            "value": {
                "answers": {"q1": 5, "q2": 1, "q3": None, "q4": 2, "q5": 4, "q6": 1, "q7": 3},
                "description": "Alice, asked in May",
            },
        },
        "traits": {
            "summary": "Trait values, no questionnaire",
            "value": {"traits": {"extraversion": 1.5, "neuroticism": -1}},
        },
    },
}  # fmt: skip
"""The OpenAPI media type of such a body."""


def is_json(request: Request) -> bool:
    """Whether the body is announced as ``application/json``, whatever its parameters."""
    kind, _, _ = request.headers.get("content-type", "").partition(";")
    return kind.strip().lower() == "application/json"


def require(directions: Directions | None) -> Directions:
    """Raises DirectionsMissing if there are none."""
    if directions is None:
        raise DirectionsMissing(
            "this server makes no personas of answers: it was started without --palign-directions FILE (made with "
            "`palign-fit directions`); start it with them, or PUT a persona file"
        )
    return directions


@functools.lru_cache(maxsize=1)
def most_bytes(directions: Directions) -> int:
    """The largest body that is read: what answers to every item take, several times over. JSON is read without
    letting go of the interpreter, so that what is junk for certain should not be read at all."""
    ids = [item["id"] for item in directions.questionnaire()["data"]]
    return _AROUND + sum(2 * len(name) + _FOR_ITEM for name in ids)


@dataclass(frozen=True)
class Enrolment:
    """What a body asks for: one of ``answers`` (item id to answer) and ``traits`` (name to standard deviations),
    as they were sent."""

    answers: dict[str, Any] | None
    traits: dict[str, Any] | None
    description: str

    @classmethod
    def read(cls, body: bytes) -> Enrolment:
        """Raises PersonaInvalid, with everything that is wrong around the answers themselves."""
        try:
            content = STRICT_JSON.decode(body.decode())
        except (ValueError, RecursionError) as error:
            raise PersonaInvalid(f"the body is not JSON: {_said(error)}") from None
        if not isinstance(content, dict):
            raise PersonaInvalid(
                f"the body is {_kind(content)}, wanted an object with answers or traits"
            )
        given = {name: value for name, value in content.items() if value is not None}
        problems = [
            f"the field {name[:40]!a} is not known, wanted {' or '.join(_FIELDS)}"
            for name in [name for name in content if name not in _FIELDS][:_SHOWN]
        ]
        made_of = [name for name in ("answers", "traits") if name in given]
        if len(made_of) != 1:
            given_are = "both answers and traits are" if made_of else "nothing is"
            problems.append(f"{given_are} given, wanted one of answers and traits")
        problems += [
            f"{name} is {_kind(given[name])}, wanted an object such as {_LIKE[name]}"
            for name in made_of
            if not isinstance(given[name], dict)
        ]
        description = given.get("description", "")
        if not isinstance(description, str):
            problems.append(f"description is {_kind(description)}, wanted a text")
        elif len(description) > MAX_DESCRIPTION:
            problems.append(
                f"description holds {len(description)} characters, wanted at most {MAX_DESCRIPTION}"
            )
        elif odd := _UNPRINTABLE.search(description):
            problems.append(
                f"description holds {odd[0]!a}, wanted text without control characters and line breaks"
            )
        if problems:
            raise PersonaInvalid("; ".join(problems))
        return cls(given.get("answers"), given.get("traits"), description)

    @property
    def made_of(self) -> str:
        return "traits" if self.answers is None else "answers"

    def persona(self, directions: Directions, name: str) -> Persona:
        """The persona ``name``: of the same content always the same. Raises PersonaInvalid, with everything that is
        wrong with the answers or values."""
        try:
            if self.answers is not None:
                return directions.from_answers(name, self.answers, self.description)
            return directions.from_traits(name, self.traits or {}, self.description)
        except PersonaInvalid as error:
            raise PersonaInvalid(error.message, param=error.param or self.made_of) from None


_SHOWN = 20
"""Most unknown fields that an error names."""
_LIKE = {"answers": '{"q1": 5}', "traits": '{"extraversion": 1.5}'}


def _said(error: Exception) -> str:
    """What is wrong with a text, without the text: what was sent may be somebody's answers."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return str(error)[:200] if not isinstance(error, RecursionError) else "it is nested too deeply"


def _kind(value: object) -> str:
    names = {
        "NoneType": "null",
        "dict": "an object",
        "list": "a list",
        "str": "a text",
        "bool": "a truth value",
    }
    return names.get(type(value).__name__, "a number")
