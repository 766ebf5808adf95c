"""Recognition against damage: what a persona gives where it costs as much as the prompt does."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from palign_fit.evaluation.conditions import CONDITIONS
from palign_fit.evaluation.intervals import known_number
from palign_fit.evaluation.speech.plan import NONE, PROMPT, Case
from palign_fit.evaluation.speech.recognition import Recognition
from palign_fit.evaluation.speech.sampled import Sampled


def at_equal_damage(
    found: Mapping[Case, Mapping[str, Recognition]],
    damage: Mapping[Case, Mapping[str, Mapping[str, Sampled]]],
) -> list[dict[str, Any]]:
    """r of every condition that only steers, less the prompt's, at the prompt's KL: between the strengths measured, or
    at the one of most KL where all cost less."""
    prompt = damage.get(Case(PROMPT, None, NONE))
    if prompt is None:
        return []
    limit = prompt["kl"]["all"].value
    steering = dict.fromkeys(
        case.condition
        for case in found
        if CONDITIONS[case.condition].method and not CONDITIONS[case.condition].prompt
    )
    systems = dict.fromkeys(case.system for case in found)
    rows = []
    for name, system in product(steering, systems):
        doses = [
            (damage[Case(name, case.strength, NONE)]["kl"]["all"].value, one)
            for case, one in found.items()
            if case.condition == name and case.system == system and (case.strength or 0) > 0
        ]
        for reader, of_prompt in found[Case(PROMPT, None, system)].items() if doses else ():
            kl, r = _between([(cost, one[reader].r) for cost, one in doses], limit)
            rows.append(
                {
                    "condition": name,
                    "system": system or None,
                    "reader": reader,
                    "kl": known_number(kl),
                    "prompt_kl": known_number(limit),
                    "r": r.as_json(),
                    "r_minus_prompt": r.minus(of_prompt.r).as_json(),
                }
            )
    return rows


def _between(points: list[tuple[float, Sampled]], limit: float) -> tuple[float, Sampled]:
    """KL and r at ``limit``. KL grows with the square of the strength, so that r is drawn out over its root; without
    strength there is no KL and no recognition."""
    first = points[0][1]
    none = (0.0, Sampled(0.0, np.zeros_like(first.draws), first.n))
    ordered = sorted([none, *points], key=lambda point: point[0])
    if limit >= ordered[-1][0]:
        return ordered[-1]
    above = next(place for place, (cost, _) in enumerate(ordered) if cost > limit)
    (low, before), (high, after) = ordered[above - 1], ordered[above]
    share = (limit**0.5 - low**0.5) / (high**0.5 - low**0.5)
    mixed = [
        (1 - share) * one + share * other
        for one, other in ((before.value, after.value), (before.draws, after.draws))
    ]
    return limit, Sampled(float(mixed[0]), np.asarray(mixed[1]), min(before.n, after.n))
