"""Other people: a norm sample that nobody had to answer for, the same every time.

How well statements follow a person says little by itself: items of one trait, and of one facet more so, move and are
answered alike, so that many a stranger is followed too. What chance gives is therefore taken from other people.
Letters: P simulated people, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vllm_palign.directions.numbers import TINY, Mask, Reals
from vllm_palign.directions.traits import CORRELATIONS, FACET_SPREAD, ITEM_SPREAD, TRAIT_SPREAD

PEOPLE, SEED = 399, 0
"""With the person measured they are 400, and the best of all stands at rank 0.0025."""

RARE = 0.05
"""The rank beyond which a persona is weak: as many strangers pass."""


@dataclass(frozen=True, eq=False)
class NormSample:
    """What each of P people answered to each item, from the usual answer, in scale points; or what their personas do to
    each: ``values`` float32 [P, N]."""

    values: npt.NDArray[np.float32]

    def rank(self, own: Reals, rows: Mask, alignment: float) -> float:
        """Share of people, the one measured among them, whose values over the items in ``rows`` bool [N] correlate
        with ``own`` float64 [N] as much as ``alignment`` or more: 0 to 1, where small is good.

        Whoever is no more to ``own`` than anybody has any rank with the same chance.
        """
        # In float64: who stands just beside the one measured is the same on every processor.
        used, count = rows.astype(np.float64), max(int(rows.sum()), 1)
        moved = np.where(rows, own, 0.0)
        moved -= np.where(rows, moved.sum() / count, 0.0)
        # The others need no centring where what they are multiplied with has a mean of 0.
        shared = self._wide @ moved
        spread = self._squares @ used - (self._wide @ used) ** 2 / count
        scale = np.sqrt(np.maximum(spread, 0.0) * float(moved @ moved))
        others = np.where(scale > TINY, shared / np.maximum(scale, TINY), 0.0)
        return (1 + int((others >= alignment).sum())) / (1 + len(others))

    @cached_property
    def _wide(self) -> Reals:
        return self.values.astype(np.float64)

    @cached_property
    def _squares(self) -> Reals:
        return np.asarray(self._wide**2)


def answered(of_trait: Mask, signs: Reals, facets: Sequence[tuple[str, str]]) -> NormSample:
    """People's answers: their trait scores, a part that the items of one facet share, and an error an item.

    ``of_trait`` bool [5, N]; ``signs`` float64 [N]; ``facets``: trait and facet of each. A facet that is all
    there is of its trait has no part of its own.
    """
    rng = np.random.default_rng(SEED)
    traits = trait_scores(rng, PEOPLE) @ of_trait
    names = [*dict.fromkeys(facets)]
    several = {trait for trait, _ in names if sum(other == trait for other, _ in names) > 1}
    parts = rng.standard_normal((PEOPLE, len(names)))[:, [names.index(facet) for facet in facets]]
    shared = np.array([FACET_SPREAD if trait in several else 0.0 for trait, _ in facets])
    errors = np.sqrt(ITEM_SPREAD**2 - shared**2) * rng.standard_normal(traits.shape)
    found = (traits + shared * parts) * signs + errors
    return NormSample(found.astype(np.float32))


def trait_scores(rng: np.random.Generator, people: int) -> Reals:
    """Trait scores of so many people, in scale points from the usual: float64 [P, 5]."""
    root = np.linalg.cholesky(TRAIT_SPREAD**2 * CORRELATIONS)
    return np.asarray(rng.standard_normal((people, len(root))) @ root.T)
