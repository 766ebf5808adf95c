"""The default method, ``palign``: directions by their effect on what a person would say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from palign_fit.arrays import random_folds
from palign_fit.inputs.answers import Subject
from palign_fit.inputs.inventory import built_in
from palign_fit.methods.baseline import Baseline
from palign_fit.methods.palign.directions import solve
from palign_fit.methods.palign.reach import REACHES, Bounds
from palign_fit.methods.palign.sentence_gradients import SentenceGradients
from palign_fit.methods.settings import Settings, naming, shared_digest
from palign_fit.model.cache import ModelCache
from palign_fit.model.model import OpenedModel, model_facts
from palign_fit.progress import Progress, no_progress
from vllm_palign.directions import Directions
from vllm_palign.directions.directions import FOLDS
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask
from vllm_palign.directions.people import best_items
from vllm_palign.directions.record import Fit, tool
from vllm_palign.directions.traits import TRAITS
from vllm_palign.persona import Persona


class PalignFitter:
    """Everything that no subject changes, prepared: ``directions``; subjects then cost a few small products
    each.

    The constructor takes the method's steps in the order of docs/fitting.md; the last four are taken once
    more for each person, by the directions alone or, with ``settings.check``, by forward passes too.
    """

    def __init__(
        self,
        model: OpenedModel,
        inventory: Inventory,
        used: Mask,
        settings: Settings,
        kept: ModelCache | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """As ``fit.Method``."""
        self.model, self.settings = model, settings
        kept = kept or ModelCache.none(model)
        # 1 Examples, 2 Effects: what steering does to sentences of known keying.
        sentences = SentenceGradients.read(model, inventory, used, kept, progress)
        count = settings.heads
        # 3 Heads, 4 Direction, 5 Scale.
        whole = solve(sentences, inventory, used, count)
        # The same without the items of each fold, for 7.
        folds = random_folds(len(inventory.items), settings.seed, FOLDS).astype(np.int32)
        blind = [
            solve(sentences, inventory, used & (folds != fold), count) for fold in range(FOLDS)
        ]
        # 6 Alpha: what chats bear and how far statements follow, matters of the model alone.
        default = inventory.digest == built_in().digest and bool(used.all())
        bounds = Bounds(model, count, kept, progress, sentences if default else None)
        self.budget = bounds.budget
        # Whoever gives alpha does not wait for what would choose it.
        given = settings.alpha is not None
        self.directions = Directions(
            model=model_facts(model),
            made_with=shared_digest(model, kept.checkpoint, inventory, used, settings),
            whole=whole,
            blind=tuple(blind),
            traits=solve(sentences, inventory, np.zeros_like(used), count, alone=True),
            folds=folds,
            budget=bounds.budget,
            reach=REACHES[0] if given else bounds.reach,
            doses=REACHES,
            followed=np.full((len(TRAITS), len(REACHES)), np.nan) if given else bounds.followed,
            order=tuple(best_items(whole)),
            seed=settings.seed,
            tool=tool(),
        )
        self.baseline = Baseline.measure(model, inventory, used) if settings.check else None
        # 7 Held-out figures: of each person, in ``fit``.

    def fit(self, subject: Subject) -> Persona:
        """As ``fit.Fitter``."""
        directions = self.directions
        with naming(subject):
            found = directions.fit(subject.id, subject.agreement, self.settings.alpha)
        if self.baseline is not None:
            found = self._measured(found, self.baseline)
        return found.persona(directions.model, directions.inventory, listed=True)

    def _measured(self, found: Fit, baseline: Baseline) -> Fit:
        """``found``, which is of first order, with alpha and figures by forward passes: every answered item under
        the directions of the other folds."""
        agreement, budget, directions = found.agreement, self.budget, self.directions
        if found.given:
            alpha = found.chosen.alpha
            perplexity = budget.chats.under(found.heads, alpha)
        else:
            weights = directions.whole.weights(agreement)
            _, scale = directions.whole.offsets(weights)
            start = budget.alpha(directions.whole.disturbance(weights, scale))
            alpha, perplexity = budget.checked(found.heads, start, found.reach * found.share)
        change = np.zeros(len(agreement))
        for rows, blind in directions.held_out(agreement):
            steering, size = blind.steering(blind.weights(agreement))
            if size > 0:
                change[rows] = baseline.change(steering, alpha, rows)
        trial = directions.trial(agreement, alpha, perplexity, change)
        measured = directions.record(
            found.name,
            agreement,
            found.heads,
            trial,
            given=found.given,
            share=found.share,
            checked=True,
        )
        return replace(measured, max_strength=budget.strongest(found.heads, alpha, perplexity))
