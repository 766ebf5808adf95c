"""Trait values given by name: ``extraversion=+1.5``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from palign_fit.errors import refuse
from vllm_palign.directions.traits import MAX_VALUE, NAMES, TRAITS, letter_of

_ADVICE = (
    "Wanted NAME=VALUE such as extraversion=+1.5: NAME one of "
    f"{', '.join(NAMES)} or its first letter, VALUE from -{MAX_VALUE:g} to {MAX_VALUE:g} in standard "
    "deviations over people, not all 0."
)


def parse_sliders(arguments: Sequence[str]) -> dict[str, float]:
    """Trait letter -> value, in the order of TRAITS, traits at 0 left out.

    Raises InputError listing every problem.
    """
    given: dict[str, float] = {}
    problems = []
    for argument in arguments:
        name, _, text = argument.partition("=")
        letter = letter_of(name.strip())
        value = _number(text)
        shown = repr(argument[:60])
        if letter is None:
            problems.append(f"{shown}: no trait has this name")
        elif letter in given:
            problems.append(f"{shown}: {letter} is there twice")
        elif not abs(value) <= MAX_VALUE:
            problems.append(f"{shown}: the value is not a number within the limits")
        if letter is not None:
            given.setdefault(letter, value)
    if not problems and not any(given.values()):
        problems.append("every trait is 0: there is nothing to steer towards")
    if problems:
        raise refuse("traits", problems, _ADVICE)
    return {trait: given[trait] for trait in TRAITS if given.get(trait)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
