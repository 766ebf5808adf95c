"""The fitter of the published method: subjects one by one, alpha searched by forward passes."""

from __future__ import annotations

import numpy as np

from palign_fit.inputs.answers import Subject
from palign_fit.methods.baseline import Baseline
from palign_fit.methods.pas_reference.alpha import GRID, choose_trial, search_alpha
from palign_fit.methods.pas_reference.letters import ReferenceMethod
from palign_fit.methods.settings import Settings, check_subject
from palign_fit.model.cache import ModelCache
from palign_fit.model.chats import Chats
from palign_fit.model.model import OpenedModel, model_facts
from palign_fit.progress import Progress, no_progress
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask
from vllm_palign.directions.record import Fit
from vllm_palign.persona import Persona


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
