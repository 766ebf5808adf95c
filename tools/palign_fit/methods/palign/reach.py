"""How far along its directions a model can be pushed before it stops following them.

Likelihood follows an offset in proportion only while the offset is small. Beyond that, steering for a
trait and against it begin to do the same, which says nothing about a person. Some models get there before
their language suffers (docs/fitting.md); perplexity alone would steer them too hard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from palign_fit.arrays import Mask
from palign_fit.inputs.traits import TRAITS
from palign_fit.methods.baseline import Baseline
from palign_fit.methods.budget import Budget
from palign_fit.methods.palign.directions import Directions
from palign_fit.methods.record import is_weak
from palign_fit.methods.steering import correlation
from palign_fit.model.cache import ModelCache

REACHES = (1.0, 0.5, 0.25)
"""Parts of the alpha that perplexity allows, tried on every model."""

ENOUGH = 0.95
"""The longest reach is taken that carries this part of what the best one does: a persona twice as strong is worth
more than a correlation of 0.31 instead of 0.30 (docs/fitting.md)."""

FEWEST = 60
"""With fewer items nothing can be told; the whole alpha is taken."""


def carried(
    baseline: Baseline,
    budget: Budget,
    blind: Sequence[Directions],
    folds: npt.NDArray[np.int64],
    used: Mask,
    tick: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """How well held-out items follow typical people at each of REACHES: correlation of the real
    change of each fold's items, under a direction that knows none of them, with their keying.

    ``folds`` int64 [N] and ``used`` bool [N] of the items; ``blind`` directions without each fold.
    """
    found: list[list[float]] = [[] for _ in REACHES]
    for fold, directions in enumerate(blind):
        rows = used & (folds == fold)
        items = [item for item, row in zip(directions.inventory.items, rows, strict=True) if row]
        for someone in directions.typical():
            trait = TRAITS[someone.trait]
            keys = np.array([someone.sign * item.sign * (item.trait == trait) for item in items])
            whole = budget.alpha(someone.disturbance)
            for correlations, reach in zip(found, REACHES, strict=True):
                change = baseline.change(someone.steering, reach * whole, rows)
                correlations.append(correlation(change, keys.astype(np.float64)))
                tick(1)
    return [float(np.mean(correlations)) if correlations else 0.0 for correlations in found]


def find_reach(
    measure: Callable[[], Sequence[float]],
    items: int,
    *,
    known_by: dict[str, object] | None = None,
    kept: ModelCache | None = None,
) -> float:
    """One of REACHES. ``measure``: how well ``items`` held-out statements follow each of them,
    correlations. The whole alpha where even the best could be chance."""
    if items < FEWEST:
        return REACHES[0]

    def compute() -> dict[str, npt.NDArray[np.float64]]:
        return {"carried": np.array(measure())}

    arrays = kept.load_or_compute("reach 1", known_by or {}, compute) if kept else compute()
    best = float(arrays["carried"].max())
    if is_weak(best, items):
        return REACHES[0]
    return next(
        reach
        for reach, value in zip(REACHES, arrays["carried"], strict=True)
        if value >= ENOUGH * best
    )
