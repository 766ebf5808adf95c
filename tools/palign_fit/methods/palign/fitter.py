"""The default method, ``palign``: directions by their effect on what a person would say."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from palign_fit.arrays import Mask
from palign_fit.errors import InputError
from palign_fit.inputs.answers import Subject
from palign_fit.inputs.inventory import Inventory, built_in
from palign_fit.inputs.scores import deviations
from palign_fit.methods.baseline import Baseline, steered_perplexity
from palign_fit.methods.palign.directions import Directions
from palign_fit.methods.palign.reach import FOLDS, REACHES, Bounds
from palign_fit.methods.palign.sentence_gradients import SentenceGradients
from palign_fit.methods.record import Fit, Trial, effect
from palign_fit.methods.settings import Settings, check_subject
from palign_fit.methods.steering import correlation, random_folds
from palign_fit.model.cache import Cache, ModelCache
from palign_fit.model.model import OpenedModel
from palign_fit.progress import Progress, no_progress
from vllm_palign.persona import Persona


class PalignFitter:
    """Everything that no subject changes, prepared; subjects then cost a few small products each.

    The constructor takes the method's steps in the order of docs/fitting.md; ``fit`` goes through the last
    four once more, for one person.
    """

    name: ClassVar[str] = "palign"
    score_name: ClassVar[str] = "correlation on other questionnaires"

    def __init__(
        self,
        model: OpenedModel,
        inventory: Inventory,
        used: Mask,
        settings: Settings,
        *,
        checkpoint: str = "",
        cache: Cache | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """As ``fit.Method``."""
        self.model, self.inventory, self.settings = model, inventory, settings
        kept = ModelCache.of(model, checkpoint, cache)
        # 1 Examples, 2 Effects: what steering does to sentences of known keying.
        self.sentences = SentenceGradients.read(model, inventory, used, kept, progress)
        # 3 Heads, 4 Direction, 5 Scale.
        self.directions = Directions.of(self.sentences, inventory, used, settings.heads)
        # The same without the items of each fold, for 7.
        self.folds = random_folds(len(inventory.items), settings.seed, FOLDS)
        self.blind = [
            Directions.of(self.sentences, inventory, used & (self.folds != fold), settings.heads)
            for fold in range(FOLDS)
        ]
        # 6 Alpha: what neutral text bears and how far statements follow, matters of the model alone.
        default = inventory.digest == built_in().digest and bool(used.all())
        bounds = Bounds(model, settings.heads, kept, progress, self.sentences if default else None)
        self.budget = bounds.budget
        # Whoever gives alpha does not wait for what would choose it.
        self.reach = REACHES[0] if settings.alpha is not None else bounds.reach
        self.baseline = Baseline.measure(model, inventory, used) if settings.check else None
        # 7 Held-out figures: of each person, in ``fit``.

    def fit(self, subject: Subject) -> Persona:
        """As ``fit.Fitter``."""
        check_subject(subject)
        return self._fit(subject).persona(self.model, self.inventory, self.settings)

    def _fit(self, subject: Subject) -> Fit:
        directions, budget = self.directions, self.budget
        weights = directions.weights(subject)
        steering, scale = directions.steering(weights)
        if scale == 0:
            raise InputError(
                f"subject {subject.id!r}: the answers differ from the usual ones nowhere, or "
                "everywhere by the same amount; there is nothing to steer towards"
            )
        disturbance = directions.disturbance(weights, scale)
        given = self.settings.alpha
        alpha = budget.alpha(disturbance, self.reach) if given is None else given
        if self.baseline is None:
            perplexity = budget.predicted(alpha, disturbance)
        elif given is None:
            alpha, perplexity = budget.checked(steering, budget.alpha(disturbance), self.reach)
        else:
            perplexity = steered_perplexity(self.model, steering, alpha)
        chosen = self._trial(subject, alpha, perplexity)
        return Fit(
            subject=subject,
            method=self.name,
            heads=steering,
            score=self.score_name,
            trials=[chosen],
            chosen=chosen,
            checked=self.baseline is not None,
            plain_perplexity=budget.plain,
            most=self.budget.most(self.reach),
            reach=self.reach,
        )

    def _trial(self, subject: Subject, alpha: float, perplexity: float) -> Trial:
        """Every answered item under the direction of the other folds, measured or to first order."""
        answered = np.isfinite(subject.agreement)
        change = np.zeros(len(answered))
        for fold, blind in enumerate(self.blind):
            rows = answered & (self.folds == fold)
            weights = blind.weights(subject)
            steering, scale = blind.steering(weights)
            if scale == 0 or not rows.any():
                continue
            if self.baseline is None:
                change[rows] = alpha * blind.change(weights, scale)[rows]
            else:
                change[rows] = self.baseline.change(steering, alpha, rows)
        wanted = deviations(subject, self.inventory)[answered]
        return Trial(
            alpha=alpha,
            effect=effect(change[answered], wanted),
            alignment=correlation(change[answered], wanted),
            perplexity=perplexity,
        )
