"""How hard a model can be steered: what chats bear, and how far statements follow.

Likelihood follows an offset in proportion only while the offset is small. Beyond that, steering for a
trait and against it begin to do the same, which says nothing about a person. Some models get there before
their language suffers (docs/experiments/alpha.md); perplexity alone would steer them too hard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from palign_fit.arrays import random_folds
from palign_fit.inputs.inventory import built_in
from palign_fit.methods.baseline import Baseline
from palign_fit.methods.budget import TextBudget
from palign_fit.methods.palign.directions import solve
from palign_fit.methods.palign.sentence_gradients import SentenceGradients
from palign_fit.methods.palign.sentences import shipped
from palign_fit.model import prompts
from palign_fit.model.cache import Arrays, ModelCache
from palign_fit.model.chats import Chats
from palign_fit.model.model import OpenedModel
from palign_fit.progress import Progress, no_progress
from vllm_palign.directions.basis import Basis
from vllm_palign.directions.budget import Budget
from vllm_palign.directions.directions import FOLDS
from vllm_palign.directions.numbers import Reals, chance, correlation
from vllm_palign.directions.traits import TRAITS

REACHES = (1.0, 0.5, 0.25)
"""Parts of the alpha that perplexity allows, tried on every model."""

ENOUGH = 0.95
"""The longest reach is taken that carries this part of what the best one does: a persona twice as strong is worth
more than a correlation of 0.31 instead of 0.30 (docs/experiments/alpha.md)."""


def carried(
    baseline: Baseline,
    budget: Budget,
    blind: Sequence[Basis],
    folds: npt.NDArray[np.int32],
    tick: Callable[[int], None] = lambda _: None,
) -> Reals:
    """How well held-out items follow typical people of each trait at each of REACHES: correlation of the real
    change of each fold's items, under directions that know none of them, with their keying; mean over folds
    and ends of the trait. float64 [5, R], NaN for a trait that these directions do not move.

    ``folds`` int32 [N] of the items; ``blind`` directions without each fold.
    """
    found: list[list[list[float]]] = [[[] for _ in REACHES] for _ in TRAITS]
    for fold, directions in enumerate(blind):
        rows = folds == fold
        items = [item for item, row in zip(directions.inventory.items, rows, strict=True) if row]
        for someone in directions.typical():
            trait = TRAITS[someone.trait]
            keys = np.array([someone.sign * item.sign * (item.trait == trait) for item in items])
            whole = budget.alpha(someone.disturbance)
            for correlations, reach in zip(found[someone.trait], REACHES, strict=True):
                change = baseline.change(someone.steering, reach * whole, rows)
                correlations.append(correlation(change, keys.astype(np.float64)))
                tick(1)
    return np.array(
        [[float(np.mean(one)) if one else math.nan for one in trait] for trait in found]
    )


def longest(carried: Reals, items: int) -> float:
    """One of REACHES, by how well ``items`` held-out statements follow typical people at each of them,
    correlations [5, R]. The whole alpha where even the best could be chance."""
    known = carried[np.isfinite(carried).all(1)]
    means = known.mean(0) if len(known) else np.zeros(len(REACHES))
    if means.max() < chance(items):
        return REACHES[0]
    return next(
        reach for reach, value in zip(REACHES, means, strict=True) if value >= ENOUGH * means.max()
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
        self._known_by = {"heads": count, "sentences": shipped(), "chats": prompts.CHATS}

    @cached_property
    def sentences(self) -> SentenceGradients:
        if self._sentences is not None:
            return self._sentences
        return SentenceGradients.read(
            self.model, self.inventory, self.every, self.kept, self.progress
        )

    @cached_property
    def budget(self) -> TextBudget:
        """What chats bear. Raises FitError where they have no finite perplexity."""

        chats = Chats(self.model)

        def compute() -> Arrays:
            whole = solve(self.sentences, self.inventory, self.every, self.count)
            typical = [(someone.steering, someone.disturbance) for someone in whole.typical()]
            with self.progress("budget", None) as tick:
                found = TextBudget.measure(chats, typical, tick)
            return {"budget": np.array([found.plain, found.rate])}

        # The number rises when directions are found in another way, here and below.
        plain, rate = self.kept.load_or_compute("budget 4", self._known_by, compute)["budget"]
        return TextBudget(float(plain), float(rate), chats)

    @cached_property
    def followed(self) -> Reals:
        """How well statements follow typical people of each trait, at each of REACHES: see ``carried``."""

        def compute() -> Arrays:
            folds = random_folds(len(self.every), 0, FOLDS).astype(np.int32)
            blind = [
                solve(self.sentences, self.inventory, folds != fold, self.count)
                for fold in range(FOLDS)
            ]
            total = len(REACHES) * sum(len(list(each.typical())) for each in blind)
            baseline = Baseline.measure(self.model, self.inventory, self.every)
            with self.progress("reach", total) as tick:
                return {"carried": carried(baseline, self.budget, blind, folds, tick)}

        found = self.kept.load_or_compute("reach 4", self._known_by, compute)["carried"]
        return np.asarray(found, np.float64)

    @property
    def reach(self) -> float:
        """How much of the alpha that chats bear statements follow."""
        return longest(self.followed, len(self.every))
