"""How hard a model can be steered: what neutral text bears, and how far statements follow.

Likelihood follows an offset in proportion only while the offset is small. Beyond that, steering for a
trait and against it begin to do the same, which says nothing about a person. Some models get there before
their language suffers (docs/experiments/alpha.md); perplexity alone would steer them too hard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from palign_fit.inputs.inventory import built_in
from palign_fit.inputs.traits import TRAITS
from palign_fit.methods.baseline import Baseline
from palign_fit.methods.budget import Budget
from palign_fit.methods.palign.directions import Directions
from palign_fit.methods.palign.sentence_gradients import SentenceGradients
from palign_fit.methods.palign.sentences import shipped
from palign_fit.methods.record import is_weak
from palign_fit.methods.steering import correlation, random_folds
from palign_fit.model.cache import Arrays, ModelCache
from palign_fit.model.model import OpenedModel
from palign_fit.progress import Progress, no_progress

REACHES = (1.0, 0.5, 0.25)
"""Parts of the alpha that perplexity allows, tried on every model."""

ENOUGH = 0.95
"""The longest reach is taken that carries this part of what the best one does: a persona twice as strong is worth
more than a correlation of 0.31 instead of 0.30 (docs/experiments/alpha.md)."""

FOLDS = 3
"""Each third of the items under a direction that knows neither their answers nor their texts."""


def carried(
    baseline: Baseline,
    budget: Budget,
    blind: Sequence[Directions],
    folds: npt.NDArray[np.int64],
    tick: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """How well held-out items follow typical people at each of REACHES: correlation of the real
    change of each fold's items, under a direction that knows none of them, with their keying.

    ``folds`` int64 [N] of the items; ``blind`` directions without each fold.
    """
    found: list[list[float]] = [[] for _ in REACHES]
    for fold, directions in enumerate(blind):
        rows = folds == fold
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


def longest(carried: Sequence[float], items: int) -> float:
    """One of REACHES, by how well ``items`` held-out statements follow each of them, correlations. The whole
    alpha where even the best could be chance."""
    best = max(carried)
    if is_weak(best, items):
        return REACHES[0]
    return next(
        reach for reach, value in zip(REACHES, carried, strict=True) if value >= ENOUGH * best
    )


class Bounds:
    """Budget and reach of one model, with ``count`` heads: measured with the built-in inventory, whatever
    people answered, so that they are found once and hold for every inventory.

    ``sentences`` of the built-in inventory are read, or found in ``kept``, only if something has to be
    measured.
    """

    def __init__(
        self,
        model: OpenedModel,
        count: int,
        kept: ModelCache,
        progress: Progress = no_progress,
        sentences: SentenceGradients | None = None,
    ) -> None:
        self.model, self.count, self.kept, self.progress = model, count, kept, progress
        self.inventory = built_in()
        self.every = np.ones(len(self.inventory.items), bool)
        self._sentences = sentences
        self._known_by = {"heads": count, "sentences": shipped()}

    @cached_property
    def sentences(self) -> SentenceGradients:
        if self._sentences is not None:
            return self._sentences
        return SentenceGradients.read(
            self.model, self.inventory, self.every, self.kept, self.progress
        )

    @cached_property
    def budget(self) -> Budget:
        """What neutral text bears. Raises FitError where it has no finite perplexity."""

        def compute() -> Arrays:
            whole = Directions.of(self.sentences, self.inventory, self.every, self.count)
            typical = [(someone.steering, someone.disturbance) for someone in whole.typical()]
            with self.progress("budget", None) as tick:
                found = Budget.measure(self.model, typical, tick)
            return {"budget": np.array([found.plain, found.rate])}

        # The number rises when directions are found in another way, here and below.
        plain, rate = self.kept.load_or_compute("budget 2", self._known_by, compute)["budget"]
        return Budget(self.model, float(plain), float(rate))

    @cached_property
    def reach(self) -> float:
        """How much of the alpha that neutral text bears statements follow."""

        def compute() -> Arrays:
            folds = random_folds(len(self.every), 0, FOLDS)
            blind = [
                Directions.of(self.sentences, self.inventory, folds != fold, self.count)
                for fold in range(FOLDS)
            ]
            total = len(REACHES) * sum(len(list(each.typical())) for each in blind)
            baseline = Baseline.measure(self.model, self.inventory, self.every)
            with self.progress("reach", total) as tick:
                return {"carried": np.array(carried(baseline, self.budget, blind, folds, tick))}

        found = self.kept.load_or_compute("reach 2", self._known_by, compute)["carried"]
        return longest(found.tolist(), len(self.every))
