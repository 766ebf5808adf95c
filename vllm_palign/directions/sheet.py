"""What an application may send of a person, checked at the door: answers, or trait values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Reals
from vllm_palign.directions.scores import check_agreement
from vllm_palign.directions.traits import MAX_VALUE, NAMES, TRAITS, letter_of
from vllm_palign.errors import PersonaInvalid

_SHOWN = 12
NOTHING = 1e-6
"""|Trait value| below which it is 0."""


def agreement_of(answers: Mapping[str, Any], inventory: Inventory) -> Reals:
    """``answers``, item id -> 1 to 5, as float64 [N] in the order of ``inventory``; null and 0 are missing.

    Raises PersonaInvalid, naming every item at fault, and for answers that say nothing about a person.
    """
    found = np.full(len(inventory.items), np.nan)
    problems = []
    for item, value in answers.items():
        place = inventory.places.get(item)
        if place is None:
            problems.append(f"{item[:40]!r} is no item of inventory {inventory.name!r}")
        elif value is None:
            continue
        elif type(value) not in (int, float) or value not in (0, 1, 2, 3, 4, 5):
            problems.append(f"{item!r} is {str(value)[:40]!r}, wanted 1 to 5, or null if missing")
        elif value:
            found[place] = float(value)
    if problems:
        raise _refused("answers", problems, "GET /v1/questionnaire lists the items and the scale")
    try:
        check_agreement(found)
    except PersonaInvalid as error:
        raise PersonaInvalid(f"answers: {error.message}", param="answers") from None
    return found


def trait_values(values: Mapping[str, Any]) -> dict[str, float]:
    """Trait letter -> value in standard deviations, in the order of TRAITS, traits at 0 left out.

    Raises PersonaInvalid, naming everything at fault, and where every trait is 0.
    """
    given: dict[str, float] = {}
    seen: set[str] = set()
    problems = []
    for name, value in values.items():
        letter = letter_of(name)
        if letter is None:
            problems.append(f"{name[:40]!r} is no trait")
        elif value is None:
            continue
        elif letter in seen:
            problems.append(f"{letter} is there twice")
        elif type(value) not in (int, float) or not abs(_number(value)) <= MAX_VALUE:
            problems.append(
                f"{name!r} is {str(value)[:40]!r}, wanted -{MAX_VALUE:g} to {MAX_VALUE:g}"
            )
        elif abs(value) >= NOTHING:
            given[letter] = float(value)
        if letter is not None and value is not None:
            seen.add(letter)
    if not problems and not any(given.values()):
        problems.append("every trait is 0: there is nothing to steer towards")
    if problems:
        raise _refused(
            "traits",
            problems,
            f"wanted {', '.join(NAMES)} or their first letters, each in standard deviations over people",
        )
    return {trait: given[trait] for trait in TRAITS if given.get(trait)}


def _number(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _refused(param: str, problems: Iterable[str], advice: str) -> PersonaInvalid:
    """One error for all ``problems``, bounded in length however many there are."""
    found = list(problems)
    said = "; ".join(found[:_SHOWN])
    if len(found) > _SHOWN:
        said += f"; and {len(found) - _SHOWN} more"
    return PersonaInvalid(f"{param}: {said}; {advice}", param=param)
