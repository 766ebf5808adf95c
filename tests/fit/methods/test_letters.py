from __future__ import annotations

import numpy as np
import pytest
from palign_fit.arrays import random_folds
from palign_fit.methods.pas_reference.letters import (
    Contrast,
    choose_heads,
    direction,
    held_out_accuracy,
)

from vllm_palign.directions.numbers import correlation, significant

N, L, H, D = 120, 3, 4, 16


def contrast(seed: int, signal: float = 0.0, shared: float = 0.0) -> Contrast:
    """Noise; head (1, 2) carries the weights along its first axis; all heads share an offset."""
    rng = np.random.default_rng(seed)
    activations = rng.normal(size=(N, L, H, D)).astype(np.float32) + np.float32(shared)
    weights = rng.choice([-1.0, 1.0], N)
    activations[:, 1, 2, 0] += np.float32(signal) * weights
    return Contrast(activations, weights, random_folds(N, seed))


def test_the_direction_is_the_mass_mean_difference_for_signs() -> None:
    one = contrast(0, signal=1)
    up, down = one.activations[one.weights > 0], one.activations[one.weights < 0]
    difference = up.mean(0) - down.mean(0)
    wanted = difference / np.linalg.norm(difference, axis=-1, keepdims=True)
    assert np.allclose(direction(one), wanted, atol=1e-5)


def test_what_all_examples_share_never_enters_the_direction() -> None:
    assert np.allclose(direction(contrast(0, 1)), direction(contrast(0, 1, shared=50)), atol=1e-3)


def test_the_head_that_carries_the_answers_ranks_first() -> None:
    score = held_out_accuracy(contrast(3, signal=1.5))
    assert np.unravel_index(score.argmax(), score.shape) == (1, 2)


def test_random_labels_give_no_head_above_chance_on_average() -> None:
    accuracy = [held_out_accuracy(contrast(seed)) for seed in range(30)]
    # Training accuracy of 16 free weights on 96 examples would be near 0.66.
    assert np.mean(accuracy) < 0.51


def test_examples_held_out_together_share_a_fold() -> None:
    """An example repeated in another fold would leak; in the same fold it does not."""
    one = contrast(5)
    twice = np.concatenate([one.activations, one.activations])
    weights = np.tile(one.weights, 2)
    together = Contrast(twice, weights, np.tile(one.folds, 2))
    leaking = Contrast(twice, weights, np.repeat([0, 1], N))
    assert held_out_accuracy(together).mean() < 0.55
    assert held_out_accuracy(leaking).mean() > 0.6


def test_a_head_without_any_difference_has_no_direction_and_is_never_right() -> None:
    one = contrast(0, 1)
    one.activations[:, 0, 0] = 3
    assert not direction(one)[0, 0].any()
    assert held_out_accuracy(one)[0, 0] == 0


def test_offsets_are_the_standard_deviation_along_the_unit_direction() -> None:
    one = contrast(1, signal=2)
    chosen = choose_heads(one, 5)
    pairs = list(zip(chosen.layers.tolist(), chosen.heads.tolist(), strict=True))
    assert (1, 2) in pairs and pairs == sorted(set(pairs)) and len(pairs) == 5
    assert chosen.layers.dtype == chosen.heads.dtype == np.int32
    k = pairs.index((1, 2))
    along = one.activations[:, 1, 2] @ direction(one)[1, 2]
    assert np.linalg.norm(chosen.offsets[k]) == pytest.approx(along.std(), rel=1e-4)


def test_ties_go_to_the_earlier_head() -> None:
    one = contrast(1)
    one.activations[:] = one.activations[:, :1, :1]
    chosen = choose_heads(one, 2)
    assert (chosen.layers.tolist(), chosen.heads.tolist()) == ([0, 0], [0, 1])


def test_correlation_of_a_constant_is_zero() -> None:
    assert correlation(np.ones(5), np.arange(5.0)) == 0
    assert correlation(np.arange(5.0), np.arange(5.0)) == pytest.approx(1)


def test_rounding_keeps_six_significant_digits_and_zero() -> None:
    values = np.array([0, 1.23456789, -1.23456789e-7, 123456789], dtype=np.float32)
    assert (
        significant(values).tolist()
        == np.array([0, 1.23457, -1.23457e-7, 123457000], np.float32).tolist()
    )


def test_folds_are_seeded_and_even() -> None:
    assert (random_folds(50, 1) == random_folds(50, 1)).all()
    assert (random_folds(50, 1) != random_folds(50, 2)).any()
    assert np.bincount(random_folds(50, 1)).tolist() == [10] * 5
