"""What answers say about a person, measured from what people usually answer.

``agreement`` is float64 [N] in the order of the inventory: 1 to 5, NaN where an item was not answered.
"""

from __future__ import annotations

import math

import numpy as np

from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask, Reals
from vllm_palign.directions.traits import ITEM_SPREAD, TRAIT_SPREAD
from vllm_palign.errors import PersonaInvalid

MIN_ANSWERED = 6
"""Fewest answers that leave two in every held-out fold. So few make a weak fit, and it says so."""

FULL = 24
"""Answers a trait that count as a whole questionnaire."""


def deviations(agreement: Reals, inventory: Inventory) -> Reals:
    """How far each answer is from the usual one: float64 [N], in scale points, NaN where missing."""
    return np.asarray(agreement - inventory.usual)


def trait_scores(agreement: Reals, inventory: Inventory, rows: Mask) -> Reals:
    """Mean keyed deviation of each trait over the items in ``rows``: float64 [5]; 0 without answers."""
    known = rows & np.isfinite(agreement)
    keyed = np.where(known, deviations(agreement, inventory) * inventory.signs, 0.0)
    counts = (inventory.of_trait & known).sum(1)
    return np.asarray((inventory.of_trait @ keyed) / np.maximum(counts, 1))


def reliability(answers: Reals) -> Reals:
    """Share of a trait score's variance that is the trait, for so many ``answers`` to it, any shape."""
    trait = answers * TRAIT_SPREAD**2
    return np.asarray(trait / (trait + ITEM_SPREAD**2))


def certainty(agreement: Reals, inventory: Inventory, rows: Mask) -> Reals:
    """How far each trait score can be believed beside that of a whole questionnaire, FULL items a trait or
    all there are: float64 [5], 0 to 1."""
    known = (inventory.of_trait & rows & np.isfinite(agreement)).sum(1)
    whole = np.minimum((inventory.of_trait & rows).sum(1), FULL)
    best = reliability(np.maximum(whole, 1).astype(np.float64))
    return np.asarray(np.minimum(reliability(known.astype(np.float64)) / best, 1.0))


def expected_share(agreement: Reals, inventory: Inventory, rows: Mask) -> float:
    """How large a part of a whole questionnaire's steering so many answers carry, 0 to 1: the root of the
    mean certainty, because a direction that is partly guessed is right by its correlation with the true one."""
    measured = (inventory.of_trait & rows).any(1)
    if not measured.any():
        return 0.0
    return math.sqrt(float(certainty(agreement, inventory, rows)[measured].mean()))


def check_agreement(agreement: Reals) -> None:
    """Refuse answers that say nothing about a person. Raises PersonaInvalid."""
    values = agreement[np.isfinite(agreement)]
    if len(values) < MIN_ANSWERED:
        raise PersonaInvalid(
            f"{len(values)} answers, wanted at least {MIN_ANSWERED}, and 60 "
            "or more for a fit worth having; answer more items"
        )
    if (values == values[0]).all():
        raise PersonaInvalid(
            f"all {len(values)} answers are {values[0]:g}, which describes "
            "nobody; wanted different answers to different items"
        )
