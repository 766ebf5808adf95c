"""Personas from trait values alone, without answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from vllm_palign.directions.basis import Basis, SteeredHeads
from vllm_palign.directions.budget import MAX_ALPHA, MAX_RATIO, Budget
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Reals, chance, correlation, short
from vllm_palign.directions.record import SCORE, ModelFacts, new_persona, stopped
from vllm_palign.directions.traits import TRAIT_SPREAD, TRAITS
from vllm_palign.errors import PersonaInvalid
from vllm_palign.persona import Persona

METHOD = "palign-traits"

FULL = 2.0
"""Norm of the values, in standard deviations, that steers as hard as a
questionnaire's persona is."""


def of_values(basis: Basis, values: Mapping[str, float]) -> tuple[SteeredHeads, float, Reals]:
    """Heads for ``values``, trait letter -> standard deviations; what they disturb at alpha 1; and the
    first-order change of every item at alpha 1, float64 [N]. One size whatever the values.

    Raises PersonaInvalid where nothing moves these traits.
    """
    weights = np.zeros(len(basis.basis))
    for trait, value in values.items():
        weights[TRAITS.index(trait)] = value * TRAIT_SPREAD
    heads, scale = basis.steering(weights)
    if scale == 0:
        raise PersonaInvalid("nothing moves these traits of this model", param="traits")
    return heads, basis.disturbance(weights, scale), basis.change(weights, scale)


def wanted_alpha(alpha: float, values: Mapping[str, float]) -> float:
    """The alpha that ``values`` ask for: what the budget gives to their direction, times norm / FULL."""
    return alpha * math.hypot(*values.values()) / FULL


def trait_persona(
    model: ModelFacts,
    heads: SteeredHeads,
    name: str,
    values: Mapping[str, float],
    *,
    description: str,
    alpha: float,
    wanted: float,
    perplexity: float,
    budget: Budget,
    change: Reals,
    inventory: Inventory,
    max_strength: float | None = None,
) -> Persona:
    """The persona file's content. ``wanted``: the alpha that the values ask for; ``change`` float64 [N]: of
    every item's log-likelihood, under directions found without the items; ``max_strength`` as ``new_persona``."""
    asked = np.array([item.sign * values.get(item.trait, 0.0) for item in inventory.items])
    alignment = correlation(change, asked)
    weak = alignment < chance(len(inventory.items))
    return new_persona(
        model,
        heads,
        name=name,
        description=description,
        method=METHOD,
        alpha=alpha,
        perplexity=(perplexity, budget.plain),
        score=SCORE,
        warnings=[
            *_warnings(alignment, weak, wanted, alpha, perplexity / budget.plain),
            *stopped(alpha, budget.most()),
        ],
        weak=weak,
        fit={
            "alignment": short(alignment),
            "alpha_from": "sliders",
            "effects": {
                trait: short(value) for trait, value in trait_effects(change, inventory).items()
            },
            "expected_alignment": short(alignment),
            "sliders": dict(values),
        },
        max_strength=max_strength,
    )


def trait_effects(change: Reals, inventory: Inventory) -> dict[str, float]:
    """Trait -> nats per token: mean change of statements keyed + minus mean of those keyed -, halved; 0 where
    a side has no items. ``change`` float64 [N]."""
    found = {}
    for trait, own in zip(TRAITS, inventory.of_trait, strict=True):
        sides = [change[own & (inventory.signs == sign)] for sign in (1, -1)]
        measured = all(len(side) for side in sides)
        found[trait] = float(sides[0].mean() - sides[1].mean()) / 2 if measured else 0.0
    return found


def _warnings(
    alignment: float, weak: bool, wanted: float, alpha: float, ratio: float
) -> Iterator[str]:
    if weak:
        yield (
            f"weak: held-out statements follow the values with correlation {alignment:.2f}, "
            "which could be chance; use a larger model"
        )
    if ratio > MAX_RATIO:
        yield f"perplexity of chats is {ratio:.2f} x plain; answers may lose fluency"
    elif alpha < min(0.99 * wanted, MAX_ALPHA):
        yield (
            f"the values ask for alpha {wanted:.3g}; {alpha:g} is as far as perplexity of chats "
            f"stays within {MAX_RATIO:g} x plain"
        )
