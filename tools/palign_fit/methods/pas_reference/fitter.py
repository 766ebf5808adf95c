"""The fitter of the published method: subjects one by one, alpha searched by forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from palign_fit.errors import InputError
from palign_fit.inputs.answers import Refusal, Subject
from palign_fit.inputs.inventory import Inventory
from palign_fit.methods.baseline import Baseline
from palign_fit.methods.budget import MAX_RATIO
from palign_fit.methods.pas_reference.alpha import GRID, choose_trial, search_alpha
from palign_fit.methods.pas_reference.letters import ReferenceMethod
from palign_fit.methods.record import Fit
from palign_fit.methods.settings import Settings, check_subject
from palign_fit.model.model import OpenedModel
from vllm_palign.persona import Persona


class ReferenceFitter:
    """``pas-reference`` for a population."""

    def __init__(
        self,
        model: OpenedModel,
        inventory: Inventory,
        settings: Settings,
        tick: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.model, self.inventory, self.settings = model, inventory, settings
        self.method = ReferenceMethod.prepare(model, inventory, settings.seed, tick)
        self.baseline = Baseline.measure(model, inventory, np.ones(len(inventory.items), bool))

    def fit_batch(self, subjects: Sequence[Subject]) -> list[Persona | Refusal]:
        """One result a subject, in order."""
        found: list[Persona | Refusal] = []
        for subject in subjects:
            try:
                check_subject(subject)
                self.method.check(subject)
                found.append(self._fit(subject).persona(self.model, self.inventory, self.settings))
            except InputError as error:
                found.append(Refusal(subject.id, str(error)))
        return found

    def _fit(self, subject: Subject) -> Fit:
        """Directions and heads from all answers, then the alpha that held-out items ask for."""
        settings, method, plain = self.settings, self.method, self.baseline.plain_perplexity
        heads = method.fit(subject, np.isfinite(subject.agreement), settings.heads)
        grid = GRID if settings.alpha is None else (settings.alpha,)
        trials = search_alpha(
            self.baseline, method, self.inventory, subject, heads, grid=grid, seed=settings.seed
        )
        return Fit(
            subject=subject,
            method=method.name,
            heads=heads,
            score=method.score_name,
            trials=trials,
            chosen=choose_trial(trials, plain),
            checked=True,
            plain_perplexity=plain,
            max_ratio=MAX_RATIO,
        )
