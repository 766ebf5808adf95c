from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from palign_fit.inputs.answers import Subject
from palign_fit.methods.budget import TextBudget
from palign_fit.methods.palign.fitter import PalignFitter
from palign_fit.methods.settings import Settings
from palign_fit.model.cache import ModelCache

from tests.fit.conftest import answer_sheet
from vllm_palign.directions.basis import SteeredHeads
from vllm_palign.directions.budget import (
    MAX_ALPHA,
    MAX_RATIO,
    MAX_STRENGTH,
    MIN_ALPHA,
    STRONG_RATIO,
    TARGET_RATIO,
    strongest,
)
from vllm_palign.directions.inventory import Inventory

PLAIN = 20.0
HEADS = SteeredHeads(
    np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones((1, 4), np.float32), np.zeros(1)
)


@dataclass
class Costing:
    """Chats that alpha costs exp(``log_ratio(alpha)``) times their plain perplexity."""

    log_ratio: Any
    plain: float = PLAIN
    passes: int = 0

    def under(self, heads: SteeredHeads, alpha: float) -> float:
        self.passes += 1
        return self.plain * math.exp(self.log_ratio(alpha))


def costing(log_ratio: Any) -> Any:
    return Costing(log_ratio)


def test_the_rate_is_found_from_passes_and_leads_to_the_target() -> None:
    budget = TextBudget.measure(costing(lambda alpha: 0.0007 * 3 * alpha**2), [(HEADS, 3.0)] * 3)
    assert (budget.plain, budget.rate) == (PLAIN, pytest.approx(0.0007))
    for disturbance in (0.3, 3.0, 30.0):
        ratio = budget.predicted(budget.alpha(disturbance), disturbance) / PLAIN
        assert ratio == pytest.approx(TARGET_RATIO, rel=1e-3)
    assert budget.alpha(1e-9) == MAX_ALPHA and budget.alpha(1e9) == MIN_ALPHA
    assert budget.predicted(1e3, 1e9) < math.inf


def test_one_probe_that_the_model_does_not_feel_decides_nothing() -> None:
    class Deaf(Costing):
        def under(self, heads: SteeredHeads, alpha: float) -> float:
            return self.plain if heads is nobody else super().under(heads, alpha)

    nobody = replace(HEADS)
    chats: Any = Deaf(lambda alpha: 0.0007 * 3 * alpha**2)
    budget = TextBudget.measure(chats, [(nobody, 1e-9), (HEADS, 3.0), (HEADS, 3.0)])
    assert budget.rate == pytest.approx(0.0007)


def test_a_model_that_steering_does_not_disturb_gets_the_largest_alpha() -> None:
    budget = TextBudget.measure(costing(lambda alpha: 1e-9 * alpha), [(HEADS, 1.0)])
    assert budget.rate == 0 and budget.alpha(1.0) == MAX_ALPHA


@given(
    start=some.floats(MIN_ALPHA, MAX_ALPHA),
    scale=some.floats(1e-6, 1e3),
    power=some.floats(0.3, 6),
)
def test_a_checked_alpha_keeps_the_bound_or_is_the_smallest(
    start: float, scale: float, power: float
) -> None:
    chats = costing(lambda alpha: min(scale * alpha**power, 600.0))
    alpha, found = TextBudget(PLAIN, 1.0, chats).checked(HEADS, start)
    assert found == chats.under(HEADS, alpha)
    assert MIN_ALPHA <= alpha <= MAX_ALPHA
    assert found <= MAX_RATIO * PLAIN or alpha == MIN_ALPHA


def test_a_check_that_breaks_the_model_ends_at_the_smallest_alpha() -> None:
    for broken in (math.nan, math.inf):
        chats = costing(lambda _, broken=broken: broken)
        assert TextBudget(PLAIN, 1.0, chats).checked(HEADS, 3.0)[0] == MIN_ALPHA


def test_chats_that_cost_nothing_do_not_raise_alpha() -> None:
    chats = costing(lambda alpha: 1e-6 * alpha**2)
    assert TextBudget(PLAIN, 1.0, chats).checked(HEADS, 3.0)[0] == 3.0


def test_one_correction_brings_a_quadratic_cost_near_the_target() -> None:
    chats = costing(lambda alpha: 0.01 * alpha**2)
    right = math.sqrt(math.log(TARGET_RATIO) / 0.01)
    for start in (0.6 * right, right, 1.8 * right):
        alpha, _ = TextBudget(PLAIN, 1.0, chats).checked(HEADS, start)
        assert alpha == pytest.approx(right, rel=0.01)


def test_alpha_that_stops_at_the_most_that_is_tried_says_so(
    tiny: Any, inventory: Inventory, kept: ModelCache
) -> None:
    every = np.ones(120, bool)
    ann = Subject("ann", np.array(list(answer_sheet(inventory, 1).values()), float))
    for alpha, said in ((None, True), (MAX_ALPHA, False)):
        settings = Settings(heads=5, alpha=alpha, check=False)
        fitter = PalignFitter(tiny, inventory, every, settings, kept)
        free = replace(fitter.budget, rate=0.0)
        fitter.directions = replace(fitter.directions, budget=free, reach=1.0)
        persona = fitter.fit(ann)
        assert persona.alpha == MAX_ALPHA
        assert any("alpha stops at 100" in text for text in persona.fit["warnings"]) is said


@given(scale=some.floats(1e-6, 10.0), power=some.floats(0.3, 6))
def test_the_strongest_request_stays_within_its_bound_and_strength_one_is_always_let_in(
    scale: float, power: float
) -> None:
    chats = costing(lambda alpha: min(scale * alpha**power, 600.0))
    found = chats.under(HEADS, 2.0)
    strength = TextBudget(PLAIN, 1.0, chats).strongest(HEADS, 2.0, found)
    assert chats.passes < 29
    reached = chats.under(HEADS, 2.0 * strength) / PLAIN
    assert 1 <= strength <= MAX_STRENGTH and strength == round(strength, 2)
    assert reached <= STRONG_RATIO or strength == 1


def test_chats_that_cost_by_the_square_says_its_strength_at_once() -> None:
    assert strongest(math.exp(0.03)) == math.floor(100 * math.sqrt(math.log(1.3) / 0.03)) / 100
    assert strongest(0.99) == strongest(1.0) == MAX_STRENGTH
    assert strongest(2.0) == strongest(math.inf) == 1


def test_chats_that_break_let_strength_one_in_only() -> None:
    chats = costing(lambda _: math.nan)
    assert TextBudget(PLAIN, 1.0, chats).strongest(HEADS, 2.0, PLAIN) == 1
