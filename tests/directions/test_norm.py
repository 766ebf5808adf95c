"""Other people's answers as the null of how well somebody is followed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.directions import tiny_directions
from vllm_palign.directions.inventory import Inventory, Item
from vllm_palign.directions.norm import PEOPLE, RARE, NormSample
from vllm_palign.directions.numbers import correlation
from vllm_palign.directions.traits import (
    CORRELATIONS,
    FACET_SPREAD,
    ITEM_SPREAD,
    TRAIT_SPREAD,
    TRAITS,
)

FIRST = (-0.182809, -0.111849, -2.344867)
"""What the first of them answers to the first three items."""


@pytest.fixture(scope="module")
def inventory() -> Inventory:
    """300 items: six facets a trait, ten items a facet, keyed in turn."""
    return Inventory(
        "large",
        tuple(
            Item(f"q{n}", f"do thing {n}", TRAITS[n % 5], f"f{n // 5 % 6}", 1 - 2 * (n // 30 % 2))
            for n in range(300)
        ),
    )


def ranked(sample: NormSample, change: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Correlation of ``change`` with every simulated person's answers, the long way."""
    answers = sample.values.astype(np.float64)
    return np.array([correlation(change[rows], own[rows]) for own in answers])


def test_rank_counts_whoever_is_followed_as_well(inventory: Inventory) -> None:
    rng = np.random.default_rng(1)
    change = rng.standard_normal(300) + 3
    for rows in (np.ones(300, bool), rng.random(300) < 0.4):
        found = ranked(inventory.people, change, rows)
        for alignment in (-0.1, 0.0, 0.07, 0.2, 0.9):
            counted = (1 + (found >= alignment).sum()) / (1 + PEOPLE)
            assert inventory.people.rank(change, rows, alignment) == counted
    # What is not in the rows may be anything.
    gaps = np.where(rows, change, np.nan)
    assert inventory.people.rank(gaps, rows, 0.1) == inventory.people.rank(change, rows, 0.1)


def test_a_change_that_is_the_same_everywhere_follows_nobody(inventory: Inventory) -> None:
    every = np.ones(300, bool)
    assert inventory.people.rank(np.full(300, 0.3), every, 0.0) == 1.0
    assert inventory.people.rank(np.zeros(300), ~every, 0.0) == 1.0


def test_people_are_spread_as_published(inventory: Inventory) -> None:
    keyed = inventory.people.values * inventory.signs
    assert keyed.shape == (PEOPLE, 300) and abs(keyed.mean()) < 0.03
    assert keyed.std() == pytest.approx(np.hypot(TRAIT_SPREAD, ITEM_SPREAD), rel=0.02)
    scores = np.stack([keyed[:, own].mean(1) for own in inventory.of_trait], axis=1)
    assert np.allclose(np.corrcoef(scores.T), CORRELATIONS, atol=0.15)
    # Items of one facet share its part beside the trait's; items of two facets the trait's alone.
    facets = np.array([item.facet for item in inventory.items])
    covariance = np.cov(keyed.T)
    near, far = [], []
    for own in inventory.of_trait:
        same = facets[own][:, None] == facets[own]
        block = covariance[np.ix_(own, own)]
        near.append(block[same & ~np.eye(60, dtype=bool)].mean())
        far.append(block[~same].mean())
    assert np.mean(near) == pytest.approx(TRAIT_SPREAD**2 + FACET_SPREAD**2, abs=0.05)
    assert np.mean(far) == pytest.approx(TRAIT_SPREAD**2, abs=0.05)


def test_a_facet_that_is_its_whole_trait_adds_nothing() -> None:
    one = tiny_directions(3, 4, 8).inventory  # every item's facet is "f"
    covariance = np.cov((one.people.values * one.signs).T)
    own = np.ix_(one.of_trait[2], one.of_trait[2])
    off = covariance[own][~np.eye(8, dtype=bool)]
    assert off.mean() == pytest.approx(TRAIT_SPREAD**2, abs=0.06)


def test_everybody_is_the_same_in_every_process(inventory: Inventory) -> None:
    again = Inventory("other", inventory.items)
    assert (again.people.values == inventory.people.values).all()
    assert inventory.people.values[0, :3] == pytest.approx(FIRST, abs=1e-6)


def test_strangers_pass_as_often_as_they_should_although_items_go_together(
    inventory: Inventory,
) -> None:
    """People of the same kind, none of them in the sample; each model follows one person's traits. By a formula
    for independent items far more would pass."""
    rng = np.random.default_rng(7)
    every = np.ones(300, bool)
    root = np.linalg.cholesky(TRAIT_SPREAD**2 * CORRELATIONS)
    places = np.array(
        [TRAITS.index(item.trait) * 6 + int(item.facet[1]) for item in inventory.items]
    )

    def keyed(count: int) -> np.ndarray:
        traits = (rng.standard_normal((count, 5)) @ root.T) @ inventory.of_trait
        return traits + FACET_SPREAD * rng.standard_normal((count, 30))[:, places]

    changes = keyed(40) * inventory.signs
    errors = np.sqrt(ITEM_SPREAD**2 - FACET_SPREAD**2) * rng.standard_normal((40, 300))
    strangers = keyed(40) * inventory.signs + errors
    found = np.array([[correlation(change, one) for one in strangers] for change in changes])
    ranks = np.array(
        [
            [inventory.people.rank(change, every, r) for r in row]
            for change, row in zip(changes, found, strict=True)
        ]
    )
    assert (found > 1.645 / np.sqrt(300)).mean() > 0.2
    assert (ranks <= RARE).mean() == pytest.approx(RARE, abs=0.02)
