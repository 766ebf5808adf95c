"""Personas from trait values alone, without answers.

The trait directions, heads and the perplexity budget are those of the default method with the built-in
inventory (``palign.fitter``); nothing is searched again for a value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from palign_fit.arrays import Reals, short
from palign_fit.errors import InputError
from palign_fit.inputs.inventory import Inventory, built_in
from palign_fit.inputs.traits import TRAITS
from palign_fit.methods.baseline import Baseline
from palign_fit.methods.budget import MAX_ALPHA, MAX_RATIO
from palign_fit.methods.palign.directions import TRAIT_SPREAD, Directions
from palign_fit.methods.palign.fitter import PalignFitter
from palign_fit.methods.record import is_weak, new_persona, stopped
from palign_fit.methods.settings import Settings, check_heads
from palign_fit.methods.steering import SteeredHeads, correlation
from palign_fit.model.cache import Cache
from palign_fit.model.model import OpenedModel
from palign_fit.progress import Progress, no_progress
from vllm_palign.persona import Persona

METHOD = "palign-traits"

FULL = 2.0
"""Norm of the values, in standard deviations, that steers as hard as a
questionnaire's persona is."""

_STEP = 0.9


@dataclass(frozen=True)
class Response:
    """What a persona does to the built-in statements, which its direction was found without.

    ``effects`` trait -> nats per token: mean change of statements keyed + minus mean of those keyed -,
    halved. ``alignment``: correlation of every statement's change with what the values ask of it.
    """

    effects: dict[str, float]
    alignment: float


class TraitFitter:
    """Everything that no value changes, prepared.

    ``blind`` are directions that know the shipped adjectives and statements, not the built-in inventory;
    responses are measured under it.
    """

    def __init__(
        self,
        model: OpenedModel,
        count: int,
        *,
        checkpoint: str = "",
        cache: Cache | None = None,
        progress: Progress = no_progress,
    ) -> None:
        """``count`` heads. Raises InputError and FitError as ``fit.open_fitter``."""
        check_heads(count, model)
        self.model, self.inventory = model, built_in()
        every = np.ones(len(self.inventory.items), bool)
        self.settings = Settings(heads=count, check=False)
        self.fitter = PalignFitter(
            model,
            self.inventory,
            every,
            self.settings,
            checkpoint=checkpoint,
            cache=cache,
            progress=progress,
        )
        self.directions = self.fitter.directions
        self.blind = Directions.of(self.fitter.sentences, self.inventory, ~every, count)
        self.baseline = Baseline.measure(model, self.inventory, every)

    def steering(
        self, directions: Directions, values: Mapping[str, float]
    ) -> tuple[SteeredHeads, float]:
        """Heads under ``directions`` for ``values``, trait letter -> standard deviations, and their alpha.

        Offsets at alpha 1 have one size whatever the values; alpha carries how far they are from 0. It
        is what the budget gives to the direction, times norm / FULL.
        """
        weights = np.zeros(len(directions.basis))
        for trait, value in values.items():
            weights[TRAITS.index(trait)] = value * TRAIT_SPREAD
        heads, scale = directions.steering(weights)
        if scale == 0:
            raise InputError(f"{self.model.base_model}: nothing moves these traits")
        disturbance = directions.disturbance(weights, scale)
        budget, reach = self.fitter.budget, self.fitter.reach
        alpha, _ = budget.checked(heads, budget.alpha(disturbance), reach)
        return heads, alpha * math.hypot(*values.values()) / FULL

    def response(self, heads: SteeredHeads, alpha: float, values: Mapping[str, float]) -> Response:
        """By real forward passes over the built-in statements."""
        change = self.baseline.change(heads, alpha, np.ones(len(self.inventory.items), bool))
        asked = np.array([item.sign * values.get(item.trait, 0.0) for item in self.inventory.items])
        return Response(trait_effects(change, self.inventory), correlation(change, asked))

    def fit(self, name: str, values: Mapping[str, float], description: str = "") -> Persona:
        """The persona of ``values``, trait letter -> standard deviations, not all 0."""
        heads, wanted = self.steering(self.directions, values)
        budget = self.fitter.budget
        alpha, perplexity = budget.bounded(heads, wanted, _STEP)
        blind, _ = self.steering(self.blind, values)
        response = self.response(blind, alpha, values)
        weak = is_weak(response.alignment, len(self.inventory.items))
        return new_persona(
            self.model,
            heads,
            name=name,
            description=description,
            method=METHOD,
            alpha=alpha,
            perplexity=(perplexity, budget.plain),
            score=self.fitter.score_name,
            warnings=[
                *_warnings(response, weak, wanted, alpha, perplexity / budget.plain),
                *stopped(alpha, budget.most()),
            ],
            weak=weak,
            fit={
                "alignment": short(response.alignment),
                "alpha_from": "sliders",
                "effects": {trait: short(value) for trait, value in response.effects.items()},
                "sliders": dict(values),
            },
        )


def trait_effects(change: Reals, inventory: Inventory) -> dict[str, float]:
    """As ``Response.effects``, from the change of every item's log-likelihood, float64 [N]."""
    found = {}
    for trait in TRAITS:
        sides = [
            change[[item.trait == trait and item.sign == sign for item in inventory.items]].mean()
            for sign in (1, -1)
        ]
        found[trait] = float(sides[0] - sides[1]) / 2
    return found


def _warnings(
    response: Response, weak: bool, wanted: float, alpha: float, ratio: float
) -> list[str]:
    found = []
    if weak:
        found.append(
            f"weak: held-out statements follow the values with correlation {response.alignment:.2f}, "
            "which could be chance; use a larger model"
        )
    if ratio > MAX_RATIO:
        found.append(f"perplexity of neutral text is {ratio:.2f} x plain; answers may lose fluency")
    elif alpha < min(0.99 * wanted, MAX_ALPHA):
        found.append(
            f"the values ask for alpha {wanted:.3g}; {alpha:g} is as far as perplexity of neutral text "
            f"stays within {MAX_RATIO:g} x plain"
        )
    return found
