"""Personas from trait values alone, without answers, checked by forward passes.

The trait directions, heads and the perplexity budget are those of the default method with the built-in
inventory (``palign.fitter``); nothing is searched again for a value.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from palign_fit.inputs.inventory import built_in
from palign_fit.methods.baseline import Baseline
from palign_fit.methods.palign.fitter import PalignFitter
from palign_fit.methods.settings import Settings, check_heads
from palign_fit.model.cache import ModelCache
from palign_fit.model.model import OpenedModel
from palign_fit.progress import Progress, no_progress
from vllm_palign.directions.sliders import of_values, trait_persona, wanted_alpha
from vllm_palign.persona import Persona

_STEP = 0.9


class TraitFitter:
    """Everything that no value changes, prepared.

    Responses are measured under directions that know the shipped adjectives and statements, not the built-in
    inventory. Without ``check`` the figures are first-order estimates.
    """

    def __init__(
        self,
        model: OpenedModel,
        count: int,
        *,
        check: bool = True,
        kept: ModelCache | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """``count`` heads. Raises InputError and FitError as ``fit.open_fitter``."""
        check_heads(count, model)
        self.every = np.ones(len(built_in().items), bool)
        fitter = PalignFitter(
            model,
            built_in(),
            self.every,
            Settings(heads=count, check=check),
            kept,
            progress,
        )
        self.directions, self.budget = fitter.directions, fitter.budget
        self.baseline: Baseline | None = fitter.baseline

    def fit(self, name: str, values: Mapping[str, float], description: str = "") -> Persona:
        """The persona of ``values``, trait letter -> standard deviations, not all 0."""
        directions, budget = self.directions, self.budget
        if self.baseline is None:
            return directions.from_traits(name, values, description)
        heads, disturbance, _ = of_values(directions.whole, values)
        free, _ = budget.checked(heads, budget.alpha(disturbance), directions.reach)
        wanted = wanted_alpha(free, values)
        alpha, perplexity = budget.bounded(heads, wanted, _STEP)
        blind, _, _ = of_values(directions.traits, values)
        return trait_persona(
            directions.model,
            heads,
            name,
            values,
            description=description,
            alpha=alpha,
            wanted=wanted,
            perplexity=perplexity,
            budget=budget,
            change=self.baseline.change(blind, alpha, self.every),
            inventory=directions.inventory,
            max_strength=budget.strongest(heads, alpha, perplexity),
        )
