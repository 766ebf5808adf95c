"""Which items tell most of people whom nobody has met.

People are thought of as five traits, correlated as in ``traits``, and an error an item; nobody's answers are
used. Letters: S items asked, N all items.
"""

from __future__ import annotations

import numpy as np

from vllm_palign.directions.basis import Basis
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import TINY
from vllm_palign.directions.scores import FULL, reliability
from vllm_palign.directions.traits import CORRELATIONS, ITEM_SPREAD, TRAIT_SPREAD, TRAITS

FORMS = (10, 30, 60)
"""Lengths of the short forms; each begins with the items of the one before."""


def best_items(basis: Basis, count: int = FORMS[-1]) -> list[int]:
    """Places of ``count`` items, or of all that are known, the most telling first.

    One after the other, each the one with which the answers given would steer best: the first-order change of
    all items' likelihood, correlated with what the traits of a person would have them answer. Ties go to the
    earlier item.
    """
    people = _People(basis.inventory)
    left = [int(place) for place in np.flatnonzero(basis.rows)]
    chosen: list[int] = []
    while left and len(chosen) < count:
        worth = [people.follow(basis, [*chosen, place]) for place in left]
        chosen.append(left.pop(int(np.argmax(np.round(worth, 9)))))
    return chosen


class _People:
    """The moments of people's answers to an inventory."""

    def __init__(self, inventory: Inventory) -> None:
        self.own_trait = inventory.of_trait.T.astype(np.float64)  # [N, 5]
        self.loadings = self.own_trait * inventory.signs[:, None]
        self.traits = TRAIT_SPREAD**2 * CORRELATIONS
        self.root = np.linalg.cholesky(self.traits)

    def follow(self, basis: Basis, items: list[int]) -> float:
        """How all items follow when people answer ``items``: the expected correlation of their change with what
        their traits ask for."""
        loadings = self.loadings[items]  # [S, 5]
        counts = self.own_trait[items].sum(0)
        shrunk = np.minimum(reliability(counts) / float(reliability(np.array(float(FULL)))), 1.0)
        means = shrunk / np.maximum(counts, 1) * loadings  # deviation -> trait weight
        own = basis.wide_response[len(TRAITS) :][items]
        # What a deviation of one scale point in each item does to all: [S, N].
        moved = means @ basis.wide_response[: len(TRAITS)] + own - own.mean(0)
        through = loadings.T @ moved  # [5, N]
        gained = ((self.traits @ through) * self.loadings.T).sum()
        spread = ((self.root.T @ through) ** 2).sum() + ITEM_SPREAD**2 * (moved**2).sum()
        return float(gained / np.sqrt(max(spread, TINY)))
