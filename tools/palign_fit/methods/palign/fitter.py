"""The default method, ``palign``: directions by their effect on what a person would say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np

from palign_fit.arrays import Mask, Reals
from palign_fit.errors import FitError, InputError
from palign_fit.inputs.answers import Refusal, Subject
from palign_fit.inputs.inventory import Inventory
from palign_fit.inputs.scores import deviations
from palign_fit.inputs.traits import TRAITS
from palign_fit.methods.baseline import Baseline, steered_perplexity
from palign_fit.methods.budget import MAX_RATIO, Budget
from palign_fit.methods.palign.directions import TRAIT_SPREAD, Directions
from palign_fit.methods.palign.reach import REACHES, find_reach
from palign_fit.methods.palign.sentence_gradients import VERSION, SentenceGradients
from palign_fit.methods.record import Fit, Trial, effect
from palign_fit.methods.settings import Settings, check_subject
from palign_fit.methods.steering import SteeredHeads, correlation, random_folds, significant
from palign_fit.model.cache import Cache
from palign_fit.model.model import OpenedModel, model_dtype
from vllm_palign.persona import Persona

FOLDS = 3
"""Held-out figures: each third of the items under a direction that does not know its answers."""


class PalignFitter:
    """Everything that no subject changes, prepared; subjects then cost a few small products each."""

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
        tick: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.model, self.inventory, self.settings = model, inventory, settings
        cache = cache if checkpoint else None
        self.sentences = sentences = SentenceGradients.read(
            model, inventory, used, checkpoint=checkpoint, cache=cache, tick=tick
        )
        if not np.isfinite(sentences.gradients).all():
            raise FitError(f"{model.base_model}: gives NaN or Inf gradients; try --dtype float32")
        self.directions = Directions.of(sentences, inventory, used, settings.heads)
        self.folds = random_folds(len(inventory.items), settings.seed, FOLDS)
        self.blind = [
            Directions.of(sentences, inventory, used & (self.folds != fold), settings.heads)
            for fold in range(FOLDS)
        ]
        of_model: dict[str, object] = {
            "checkpoint": checkpoint,
            "dtype": model_dtype(model),
            "device": model.device.type,
        }
        self.budget = Budget.measure(
            model,
            [
                (steering, disturbance)
                for *_, steering, disturbance in self._typical(self.directions)
            ],
            key={"what": f"budget {VERSION}", "basis": _known_by(self.directions), **of_model},
            cache=cache,
            tick=tick,
        )
        if not math.isfinite(self.budget.plain):
            raise FitError(f"{model.base_model}: gives NaN or Inf likelihoods; try --dtype float32")
        self.baseline = Baseline.measure(model, inventory, used) if settings.check else None
        # Whoever gives alpha does not wait for what would choose it.
        self.reach = (
            REACHES[0]
            if settings.alpha is not None
            else self._find_reach(used, of_model, cache, tick)
        )

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

    def _typical(self, directions: Directions) -> Iterator[tuple[int, int, SteeredHeads, float]]:
        """People at either end of one trait: its place, the end, and with ``directions`` their offsets and
        what these disturb at alpha 1."""
        for place in range(len(TRAITS)):
            for sign in (1, -1):
                weights = np.zeros(len(directions.basis))
                weights[place] = sign * TRAIT_SPREAD
                steering, scale = self.steering(directions, weights)
                if scale > 0:
                    yield place, sign, steering, directions.disturbance(weights, scale)

    def _find_reach(
        self,
        used: Mask,
        of_model: dict[str, object],
        cache: Cache | None,
        tick: Callable[[int], None],
    ) -> float:
        return find_reach(
            lambda: self._carried(used, tick),
            int(used.sum()),
            key={
                "what": f"reach {VERSION}",
                "items": [item.text for item in self.inventory.items],
                "blind": [_known_by(one) for one in self.blind],
                **of_model,
            },
            cache=cache,
        )

    def _carried(self, used: Mask, tick: Callable[[int], None]) -> list[float]:
        """How well held-out items follow typical people at each of REACHES: correlation of the real
        change of each fold's items, under a direction that knows none of them, with their keying."""
        baseline = self.baseline or Baseline.measure(self.model, self.inventory, used)
        found: list[list[float]] = [[] for _ in REACHES]
        for fold, blind in enumerate(self.blind):
            rows = used & (self.folds == fold)
            items = [item for item, row in zip(self.inventory.items, rows, strict=True) if row]
            for place, sign, steering, disturbance in self._typical(blind):
                keys = [sign * item.sign * (item.trait == TRAITS[place]) for item in items]
                whole = self.budget.alpha(disturbance)
                for one, reach in zip(found, REACHES, strict=True):
                    change = baseline.change(steering, reach * whole, rows)
                    one.append(correlation(change, np.array(keys, dtype=np.float64)))
                    tick(1)
        return [float(np.mean(one)) if one else 0.0 for one in found]

    def steering(self, directions: Directions, weights: Reals) -> tuple[SteeredHeads, float]:
        """What ``directions`` makes of ``weights`` at alpha 1, and its scale; 0 if that is nothing."""
        offsets, scale = directions.offsets(weights)
        layers, heads = np.divmod(directions.choice.flat.astype(np.int32), self.model.num_heads)
        rounded = significant(offsets.astype(np.float32))
        return SteeredHeads(layers, heads, rounded, directions.choice.scores), scale

    def _fit(self, subject: Subject) -> Fit:
        directions, budget = self.directions, self.budget
        weights = directions.weights(subject)
        steering, scale = self.steering(self.directions, weights)
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
            max_ratio=MAX_RATIO,
            reach=self.reach,
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


def _known_by(directions: Directions) -> list[object]:
    """What the trait directions of ``directions`` are known by in the cache."""
    basis = significant(directions.basis[: len(TRAITS)].astype(np.float32), 4)
    return [directions.choice.flat.tolist(), basis.tolist()]
