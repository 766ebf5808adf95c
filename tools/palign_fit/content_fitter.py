"""The default method, ``palign``: directions by their effect on what a person would say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from palign_fit.answers import Refusal, Subject
from palign_fit.budget import MAX_RATIO, Budget
from palign_fit.cache import Cache
from palign_fit.contents import deviations
from palign_fit.design import VERSION, Design
from palign_fit.errors import FitError, InputError
from palign_fit.heads import Reals
from palign_fit.inventory import TRAITS, Inventory
from palign_fit.model import SubjectModel, model_dtype
from palign_fit.plan import TRAIT_SPREAD, Plan
from palign_fit.probes import Mask, SteeredHeads, correlation, random_folds, significant
from palign_fit.record import Fit, Trial, effect
from palign_fit.settings import Settings, check_subject
from palign_fit.yardstick import Yardstick, steered_perplexity
from vllm_palign.persona import Persona

FOLDS = 3
"""Held-out figures: each third of the items under a direction that does not know its answers."""


class ContentFitter:
    """Everything that no subject changes, prepared; subjects then cost a few small products each."""

    name: ClassVar[str] = "palign"
    score_name: ClassVar[str] = "correlation on other questionnaires"

    def __init__(
        self,
        model: SubjectModel,
        inventory: Inventory,
        used: Mask,
        settings: Settings,
        *,
        checkpoint: str = "",
        cache: Cache | None = None,
        tick: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.model, self.inventory, self.settings = model, inventory, settings
        cache = cache if checkpoint else None
        self.design = design = Design.read(
            model, inventory, used, checkpoint=checkpoint, cache=cache, tick=tick
        )
        if not np.isfinite(design.gradients).all():
            raise FitError(f"{model.base_model}: gives NaN or Inf gradients; try --dtype float32")
        self.plan = Plan.of(design, inventory, used, settings.heads)
        self.folds = random_folds(len(inventory.items), settings.seed, FOLDS)
        self.blind = [
            Plan.of(design, inventory, used & (self.folds != fold), settings.heads)
            for fold in range(FOLDS)
        ]
        self.budget = Budget.measure(
            model,
            list(self._typical()),
            key={
                "what": f"budget {VERSION}",
                "checkpoint": checkpoint,
                "dtype": model_dtype(model),
                "device": model.device.type,
                "basis": significant(self.plan.basis[: len(TRAITS)].astype(np.float32), 4).tolist(),
            },
            cache=cache,
            tick=tick,
        )
        if not math.isfinite(self.budget.plain):
            raise FitError(f"{model.base_model}: gives NaN or Inf likelihoods; try --dtype float32")
        self.yardstick = Yardstick.measure(model, inventory, used) if settings.check else None

    def fit_batch(self, subjects: Sequence[Subject]) -> list[Persona | Refusal]:
        """One result a subject, in order; subjects do not touch one another."""
        found: list[Persona | Refusal] = []
        for subject in subjects:
            try:
                check_subject(subject)
                found.append(self._fit(subject).persona(self.model, self.inventory, self.settings))
            except InputError as error:
                found.append(Refusal(subject.id, str(error)))
        return found

    def _typical(self) -> list[tuple[SteeredHeads, float]]:
        """People at either end of one trait, to tie perplexity to."""
        found = []
        for place in range(len(TRAITS)):
            for sign in (1, -1):
                weights = np.zeros(len(self.plan.basis))
                weights[place] = sign * TRAIT_SPREAD
                steering, scale = self.steering(self.plan, weights)
                if scale > 0:
                    found.append((steering, self.plan.disturbance(weights, scale)))
        return found

    def steering(self, plan: Plan, weights: Reals) -> tuple[SteeredHeads, float]:
        """What ``plan`` makes of ``weights`` at alpha 1, and its scale; 0 if that is nothing."""
        offsets, scale = plan.offsets(weights)
        layers, heads = np.divmod(plan.choice.flat.astype(np.int32), self.model.num_heads)
        rounded = significant(offsets.astype(np.float32))
        return SteeredHeads(layers, heads, rounded, plan.choice.scores), scale

    def _fit(self, subject: Subject) -> Fit:
        plan, budget = self.plan, self.budget
        weights = plan.weights(subject)
        steering, scale = self.steering(self.plan, weights)
        if scale == 0:
            raise InputError(
                f"subject {subject.id!r}: the answers differ from the usual ones nowhere, or "
                "everywhere by the same amount; there is nothing to steer towards"
            )
        disturbance = plan.disturbance(weights, scale)
        given = self.settings.alpha
        alpha = budget.alpha(disturbance) if given is None else given
        if self.yardstick is None:
            perplexity = budget.predicted(alpha, disturbance)
        elif given is None:
            alpha, perplexity = budget.checked(steering, alpha)
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
            checked=self.yardstick is not None,
            plain_perplexity=budget.plain,
            max_ratio=MAX_RATIO,
        )

    def _trial(self, subject: Subject, alpha: float, perplexity: float) -> Trial:
        """Every answered item under the direction of the other folds, measured or to first order."""
        answered = np.isfinite(subject.agreement)
        change = np.zeros(len(answered))
        for fold, blind in enumerate(self.blind):
            rows = answered & (self.folds == fold)
            weights = blind.weights(subject)
            steering, scale = self.steering(blind, weights)
            if scale == 0 or not rows.any():
                continue
            if self.yardstick is None:
                change[rows] = alpha * blind.change(weights, scale)[rows]
            else:
                change[rows] = self.yardstick.change(steering, alpha, rows)
        wanted = deviations(subject, self.inventory)[answered]
        return Trial(
            alpha=alpha,
            effect=effect(change[answered], wanted),
            alignment=correlation(change[answered], wanted),
            perplexity=perplexity,
        )
