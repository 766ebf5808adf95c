"""What answers say about a person, measured from what people usually answer."""

from __future__ import annotations

import numpy as np

from palign_fit.arrays import Mask, Reals
from palign_fit.inputs.answers import Subject
from palign_fit.inputs.inventory import Inventory
from palign_fit.inputs.traits import TRAITS, TYPICAL


def deviations(subject: Subject, inventory: Inventory) -> Reals:
    """How far each answer is from the usual one: float64 [N], in scale points, NaN where missing.

    The usual answer to an item keyed + is its trait's TYPICAL mean, to one keyed - its mirror image.
    """
    usual = np.array([3 + item.sign * (TYPICAL[item.trait] - 3) for item in inventory.items])
    return np.asarray(subject.agreement - usual)


def trait_scores(subject: Subject, inventory: Inventory, rows: Mask) -> dict[str, float]:
    """Mean keyed deviation per trait over the items in ``rows``; 0 for a trait without answers."""
    keyed = deviations(subject, inventory) * [item.sign for item in inventory.items]
    scores = {}
    for trait in TRAITS:
        own = rows & np.array([item.trait == trait for item in inventory.items])
        values = keyed[own & np.isfinite(keyed)]
        scores[trait] = float(values.mean()) if len(values) else 0.0
    return scores
