"""The fitter of the published method: subjects one by one, and how hard to steer each, searched by forward
passes on items its direction never saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from palign_fit.arrays import random_folds
from palign_fit.inputs.answers import Subject
from palign_fit.methods.baseline import Baseline
from palign_fit.methods.pas_reference.letters import ReferenceMethod
from palign_fit.methods.settings import Settings, check_subject
from palign_fit.model.cache import ModelCache
from palign_fit.model.chats import Chats
from palign_fit.model.model import OpenedModel, model_facts
from palign_fit.progress import Progress, no_progress
from vllm_palign.directions.basis import SteeredHeads
from vllm_palign.directions.budget import MAX_RATIO
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask, correlation, effect
from vllm_palign.directions.record import Fit, Trial
from vllm_palign.directions.scores import deviations
from vllm_palign.persona import Persona

GRID = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
HELD_OUT_FOLDS = 3


def search_alpha(
    baseline: Baseline,
    chats: Chats,
    method: ReferenceMethod,
    inventory: Inventory,
    subject: Subject,
    heads: SteeredHeads,
    *,
    grid: Sequence[float],
    seed: int,
) -> list[Trial]:
    """One trial per alpha of the rising ``grid``, up to the first beyond the perplexity bound.

    Each answered item is measured under a direction fitted without it (as many folds as
    HELD_OUT_FOLDS); perplexity under ``heads``, the one that will be saved.
    """
    answered = np.isfinite(subject.agreement)
    folds = np.full(len(answered), -1)
    folds[answered] = random_folds(int(answered.sum()), seed, HELD_OUT_FOLDS)
    count = len(heads.layers)
    blind = [
        method.fit(subject, answered & (folds != fold), count) for fold in range(HELD_OUT_FOLDS)
    ]
    wanted = deviations(subject.agreement, inventory)[answered]
    trials = []
    for alpha in grid:
        change = np.zeros(len(answered))
        for fold, fitted in enumerate(blind):
            change[folds == fold] = baseline.change(fitted, alpha, folds == fold)
        alignment = correlation(change[answered], wanted)
        trials.append(
            Trial(
                alpha=alpha,
                effect=effect(change[answered], wanted),
                alignment=alignment,
                rank=inventory.people.rank(change, answered, alignment),
                perplexity=chats.under(heads, alpha),
            )
        )
        if trials[-1].perplexity > MAX_RATIO * chats.plain:
            break
    return trials


def choose_trial(trials: Sequence[Trial], plain_perplexity: float) -> Trial:
    """The largest effect within the perplexity bound; the gentlest alpha if none is within it."""
    allowed = [one for one in trials if one.perplexity <= MAX_RATIO * plain_perplexity]
    return max(allowed, key=lambda one: one.effect) if allowed else trials[0]


class ReferenceFitter:
    """``pas-reference`` for a population."""

    def __init__(
        self,
        model: OpenedModel,
        inventory: Inventory,
        used: Mask,
        settings: Settings,
        kept: ModelCache | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """As ``fit.Method``; the published method reads every item, and keeps nothing."""
        self.model, self.inventory, self.settings = model, inventory, settings
        with progress("option prompts", 2 * len(inventory.items)) as tick:
            self.method = ReferenceMethod.prepare(model, inventory, settings.seed, tick)
        self.baseline = Baseline.measure(model, inventory, np.ones(len(inventory.items), bool))
        self.chats = Chats(model)

    def fit(self, subject: Subject) -> Persona:
        """As ``fit.Fitter``."""
        check_subject(subject)
        self.method.check(subject)
        return self._fit(subject).persona(model_facts(self.model), self.inventory, listed=True)

    def _fit(self, subject: Subject) -> Fit:
        """Directions and heads from all answers, then the alpha that held-out items ask for."""
        settings, method, plain = self.settings, self.method, self.chats.plain
        heads = method.fit(subject, np.isfinite(subject.agreement), settings.heads)
        grid = GRID if settings.alpha is None else (settings.alpha,)
        trials = search_alpha(
            self.baseline,
            self.chats,
            method,
            self.inventory,
            subject,
            heads,
            grid=grid,
            seed=settings.seed,
        )
        return Fit(
            name=subject.id,
            agreement=subject.agreement,
            method=method.name,
            heads=heads,
            score=method.score_name,
            trials=trials,
            chosen=choose_trial(trials, plain),
            checked=True,
            plain_perplexity=plain,
            most=GRID[-1],
            seed=settings.seed,
            given=settings.alpha is not None,
        )
