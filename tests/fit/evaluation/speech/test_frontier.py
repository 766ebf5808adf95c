from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from palign_fit.evaluation.speech.frontier import at_equal_damage
from palign_fit.evaluation.speech.plan import Case
from palign_fit.evaluation.speech.recognition import Recognition
from palign_fit.evaluation.speech.sampled import Sampled


def figure(value: float) -> Sampled:
    return Sampled(value, np.array([value - 0.1, value + 0.1]), 9)


def row(kl: dict[float, float], prompt_kl: float) -> dict[str, Any]:
    """Of palign with r 0.2 a strength, and a prompt with r 0.3; ``kl`` by strength."""
    damage = {Case("personality-prompt", None, ""): {"kl": {"all": figure(prompt_kl)}}}
    found = {Case("personality-prompt", None, ""): {"me": read(0.3)}}
    for strength, cost in kl.items():
        damage[Case("palign", strength, "")] = {"kl": {"all": figure(cost)}}
        found[Case("palign", strength, "")] = {"me": read(0.2 * strength)}
    (one,) = at_equal_damage(found, damage)
    return one


def read(r: float) -> Recognition:
    return Recognition(figure(r), {}, figure(0.5), figure(0.5))


def test_r_is_drawn_out_between_strengths_over_the_root_of_what_they_cost() -> None:
    one = row({1.0: 0.01, 3.0: 0.09}, 0.04)
    assert one["kl"] == one["prompt_kl"] == 0.04
    assert one["r"]["mean"] == pytest.approx(0.4)
    assert one["r_minus_prompt"]["mean"] == pytest.approx(0.1)
    assert one["r_minus_prompt"]["low"] == pytest.approx(0.1)


def test_where_the_prompt_costs_less_than_any_strength_it_is_drawn_from_nothing() -> None:
    one = row({2.0: 0.04}, 0.01)
    assert one["r"]["mean"] == pytest.approx(0.2)


def test_where_the_prompt_costs_more_than_any_strength_the_most_costly_one_counts() -> None:
    one = row({1.0: 0.01, 2.0: 0.04, -2.0: 0.5}, 0.3)
    assert (one["kl"], one["prompt_kl"]) == (0.04, 0.3)
    assert one["r"]["mean"] == pytest.approx(0.4)


def test_without_the_prompt_there_is_nothing_to_compare_with() -> None:
    assert at_equal_damage({}, {}) == []
