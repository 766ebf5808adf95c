"""Heads, directions and weights: algebra on made-up gradients and on the tiny model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from palign_fit.inputs.inventory import parse_inventory
from palign_fit.methods.discriminant import RIDGE, Discriminant, covariance_of
from palign_fit.methods.heads import Choice, Group, choose, direction
from palign_fit.methods.palign.directions import solve
from palign_fit.methods.palign.sentence_gradients import SentenceGradients

from tests.fit.conftest import HEAD_DIM, HEADS, LAYERS
from vllm_palign.directions.basis import Basis, relative_size
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.scores import deviations, trait_scores
from vllm_palign.directions.traits import TYPICAL

L, H, D, T = 3, 4, 8, 2
CARRIES, TEMPTS = (1, 2), (0, 1)


def family(seed: int, sentences: int = 40) -> list[Group]:
    """Noise; head (1, 2) answers to the loadings the same way in every family, head (0, 1) three
    times as much but in each family along another direction."""
    rng = np.random.default_rng(seed)
    loadings = rng.choice([-1.0, 0.0, 1.0], (sentences, T))
    gradients = rng.normal(size=(sentences, L, H, D)).astype(np.float32)
    gradients[:, *CARRIES, :T] += loadings
    gradients[:, *TEMPTS] += 3 * loadings @ np.linalg.qr(rng.normal(size=(D, D)))[0][:T]
    return [Group(gradients[::2], loadings[::2]), Group(gradients[1::2], loadings[1::2])]


@pytest.fixture(scope="module")
def sentences(tiny: Any, inventory: Inventory) -> SentenceGradients:
    return SentenceGradients.read(tiny, inventory, np.ones(120, bool))


def flat(basis: Basis) -> np.ndarray[Any, Any]:
    return basis.layers * HEADS + basis.heads


def test_the_head_that_carries_over_is_chosen_not_the_one_that_fits_each_family() -> None:
    families = [family(seed) for seed in range(4)]
    choice = choose(families, 1)
    assert np.unravel_index(choice.flat[0], (L, H)) == CARRIES
    assert choice.scores[0] > 0.4
    more, again = choose(families, 5), choose(families, 5)
    assert choice.flat[0] in more.flat and (np.diff(more.flat) > 0).all()
    assert (more.flat == again.flat).all() and (more.scores == again.scores).all()


def test_heads_that_are_equal_are_taken_in_their_order() -> None:
    silent = [
        [Group(np.zeros_like(one.gradients), one.loadings) for one in family(seed)]
        for seed in range(2)
    ]
    assert choose(silent, 3).flat.tolist() == [0, 1, 2]


def test_weights_count_in_the_direction_steered_along_not_in_the_choice_of_heads() -> None:
    said, denial = family(0)
    half = dataclasses.replace(denial, weight=0.5)
    wanted = direction([said]) + 0.5 * direction([denial])
    assert np.allclose(direction([said, half], weighted=True), wanted, rtol=1e-4, atol=1e-4)
    assert (direction([said, half]) == direction([said, denial])).all()


def test_a_single_questionnaire_gives_its_largest_directions() -> None:
    choice = choose([family(0, 1000)], 2)
    assert {np.unravel_index(one, (L, H)) for one in choice.flat} == {CARRIES, TEMPTS}
    assert not choice.scores.any()


@pytest.mark.parametrize("heads", [[1, 6, 7], range(L * H)], ids=["few heads", "few sentences"])
def test_the_solver_is_the_ridge_solution(heads: Sequence[int]) -> None:
    """Whichever of coordinates and sentences is fewer."""
    groups = [*family(0), *family(1)]
    discriminant = Discriminant.of(groups, Choice(np.array(heads), np.zeros(len(heads))))
    squares = discriminant.noise.T @ discriminant.noise
    ridge = RIDGE * np.trace(squares) / len(squares)
    directions = np.random.default_rng(0).normal(size=(5, len(heads) * D))
    wanted = np.linalg.solve(squares + ridge * np.eye(len(squares)), directions.T).T
    assert np.allclose(discriminant(directions), wanted, rtol=1e-8)
    assert np.allclose(
        discriminant.disturbance(directions),
        [one @ squares @ one / len(discriminant.noise) for one in directions],
    )


def test_without_noise_nothing_is_weighed() -> None:
    silent = [dataclasses.replace(one, gradients=np.zeros_like(one.gradients)) for one in family(0)]
    discriminant = Discriminant.of(silent, Choice(np.array([1]), np.zeros(1)))
    directions = np.ones((2, D))
    assert (discriminant(directions) == directions).all()


def test_noise_is_what_the_loadings_do_not_explain() -> None:
    groups = family(0)
    discriminant = Discriminant.of(groups, Choice(np.arange(L * H), np.zeros(L * H)))
    loadings = np.concatenate([one.loadings - one.loadings.mean(0) for one in groups])
    assert np.allclose(loadings.T @ discriminant.noise, 0, atol=1e-4)


def test_size_is_measured_by_how_far_the_heads_move_together() -> None:
    """Along an axis of variance 4 in one head and 12 in another, the heads move 4 together."""
    covariance = np.zeros((1, 3, 2, 2), np.float32)
    covariance[0, 0] = np.diag([4, 100])
    covariance[0, 2] = np.diag([12, 100])
    chosen = covariance_of(Choice(np.array([0, 2]), np.zeros(2)), covariance).astype(np.float64)
    assert relative_size(np.array([[3.0, 0], [4, 0]]), chosen) == pytest.approx(5 / 4)
    assert relative_size(np.zeros((2, 2)), chosen) == 0


def test_agreeing_with_a_minus_keyed_item_lowers_the_trait() -> None:
    two = parse_inventory(
        "id,text,trait,facet,key\na,talk a lot,E,f,+\nb,keep quiet,E,f,-\n", source="i", name="i"
    )
    rows = np.ones(2, bool)
    for sheet, sign in (([5, 1], 1), ([1, 5], -1)):
        assert np.sign(trait_scores(np.array(sheet, float), two, rows)[2]) == sign
    usual = np.array([TYPICAL["E"], 6 - TYPICAL["E"]])
    assert np.allclose(deviations(usual, two), 0)


def test_items_outside_the_rows_teach_nothing(
    sentences: SentenceGradients, inventory: Inventory
) -> None:
    """Other texts (gradients), keys and answers there: the same bits come out."""
    rows = np.arange(120) % 3 != 0
    outside = (sentences.examples.items >= 0) & ~rows[np.maximum(sentences.examples.items, 0)]
    gradients = sentences.gradients.copy()
    gradients[outside] = np.random.default_rng(0).normal(size=gradients[outside].shape)
    examples = dataclasses.replace(
        sentences.examples,
        loadings=np.where(
            outside[:, None], -sentences.examples.loadings, sentences.examples.loadings
        ),
    )
    other_inventory = Inventory(
        "other",
        tuple(
            item if row else dataclasses.replace(item, sign=-item.sign, trait="O")
            for item, row in zip(inventory.items, rows, strict=True)
        ),
    )
    other = dataclasses.replace(sentences, examples=examples, gradients=gradients)
    one = solve(sentences, inventory, rows, 5)
    two = solve(other, other_inventory, rows, 5)
    for name in ("basis", "quadratic"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()
    assert (one.layers == two.layers).all() and (one.heads == two.heads).all()
    answers = np.random.default_rng(1).integers(1, 6, 120).astype(float)
    assert (
        one.weights(answers).tobytes()
        == two.weights(np.where(rows, answers, 6 - answers)).tobytes()
    )
    assert not one.basis[5:][~rows].any()


def test_first_order_figures_are_the_products_of_offsets_and_gradients(
    sentences: SentenceGradients, inventory: Inventory
) -> None:
    directions = solve(sentences, inventory, np.ones(120, bool), 5)
    answers = np.random.default_rng(2).integers(1, 6, 120).astype(float)
    weights = directions.weights(answers)
    offsets, scale = directions.offsets(weights)
    said = (sentences.examples.items >= 0) & ~sentences.examples.denials
    gradients = sentences.gradients[said].reshape(120, LAYERS * HEADS, HEAD_DIM)[
        :, flat(directions)
    ]
    wanted = np.einsum("nkd,kd->n", gradients, offsets)
    assert np.allclose(directions.change(weights, scale), wanted, rtol=1e-4, atol=1e-6)
    assert directions.disturbance(weights, scale) > 0
    assert directions.disturbance(-weights, scale) == pytest.approx(
        directions.disturbance(weights, scale)
    )


def test_offsets_are_as_long_as_the_heads_move_by_themselves(
    sentences: SentenceGradients, inventory: Inventory
) -> None:
    directions = solve(sentences, inventory, np.ones(120, bool), 5)
    weights = np.zeros(125)
    weights[2] = 0.7
    offsets, _ = directions.offsets(weights)
    covariance = sentences.covariance.reshape(-1, HEAD_DIM, HEAD_DIM)[flat(directions)]
    units = offsets / np.linalg.norm(offsets, axis=1, keepdims=True)
    variance = np.einsum("ki,kij,kj->", units, covariance, units)
    assert (offsets**2).sum() == pytest.approx(variance, rel=1e-5)
    nothing, scale = directions.offsets(np.zeros(125))
    assert scale == 0 and not nothing.any()
