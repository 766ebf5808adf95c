from __future__ import annotations

import numpy as np
import pytest
from palign_fit.evaluation.intervals import Bootstrap, Estimate, average
from palign_fit.evaluation.speech import recognition as rec

from vllm_palign.directions.norm import trait_scores
from vllm_palign.directions.traits import ITEM_SPREAD, TRAITS, TYPICAL

PEOPLE = 12


@pytest.fixture
def bootstrap() -> Bootstrap:
    return Bootstrap.draw(PEOPLE, 0, 200)


def test_correlations_and_their_draws_are_pearsons(bootstrap: Bootstrap) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, PEOPLE))
    y[3] = np.nan
    found = bootstrap.correlation(x, y)
    known = np.isfinite(y)
    assert found.n == PEOPLE - 1
    assert found.mean == pytest.approx(np.corrcoef(x[known], y[known])[0, 1])
    for counts, draw in zip(bootstrap.counts, found.draws, strict=True):
        rows = np.repeat(np.flatnonzero(known), counts[known])
        assert draw == pytest.approx(np.corrcoef(x[rows], y[rows])[0, 1])


def test_who_always_sounds_the_same_correlates_with_nobody(bootstrap: Bootstrap) -> None:
    y = np.arange(PEOPLE, dtype=float)
    assert bootstrap.correlation(np.full(PEOPLE, 0.3), y).as_json()["mean"] == 0
    same = bootstrap.correlation(y, np.full(PEOPLE, 3.0)).as_json()
    assert (same["mean"], same["low"]) == (None, None)
    assert Bootstrap.draw(2, 0, 9).correlation(y[:2], y[:2]).as_json()["mean"] is None


def test_differences_are_paired_by_person(bootstrap: Bootstrap) -> None:
    values = np.random.default_rng(1).normal(size=PEOPLE)
    one, other = (bootstrap.mean(values + shift) for shift in (1.0, 0.0))
    apart = one.minus(other).as_json()
    assert apart["low"] == pytest.approx(1) == apart["high"]
    ratio = bootstrap.mean(np.full(PEOPLE, 3.0)).over(bootstrap.mean(np.full(PEOPLE, 2.0)))
    assert ratio.as_json() == {"mean": 1.5, "low": 1.5, "high": 1.5, "n": PEOPLE}


def test_a_mean_of_figures_leaves_out_what_is_undefined(bootstrap: Bootstrap) -> None:
    one = bootstrap.mean(np.random.default_rng(3).normal(size=PEOPLE))
    none = bootstrap.mean(np.full(PEOPLE, np.nan))
    assert average([one, none]).as_json() == one.as_json()
    assert average([none, none]).as_json() == none.as_json()


def test_profiles_are_measured_from_plains_answer_to_the_same_question() -> None:
    rng = np.random.default_rng(2)
    plain, shown = rng.normal(size=(4, 5)), rng.normal(size=(3, 5))
    read = plain + shown[:, None] * np.ones((1, 4, 1))
    read[0, 2] = np.nan
    np.testing.assert_allclose(rec.profiles(read, plain), shown)


def test_pairs_are_told_apart_as_by_trying_both_ways() -> None:
    rng = np.random.default_rng(3)
    said, scores = rng.normal(size=(2, PEOPLE, 5))
    x, y = rec.standardised(said), rec.standardised(scores)
    np.testing.assert_allclose([x.mean(0), x.std(0)], [np.zeros(5), np.ones(5)], atol=1e-12)
    found = rec.told_apart(x, y)
    for i in range(PEOPLE):
        for j in range(PEOPLE):
            right, swapped = x[i] @ y[i] + x[j] @ y[j], x[i] @ y[j] + x[j] @ y[i]
            assert np.isnan(found[i, j]) if i == j else found[i, j] == (right > swapped)
    assert np.nanmean(rec.told_apart(np.zeros_like(x), y)) == 0.5
    assert np.nanmean(rec.told_apart(y, y)) == 1


def test_the_right_person_stands_first_where_what_was_said_fits_and_anywhere_by_chance() -> None:
    rng = np.random.default_rng(4)
    true = trait_scores(rng, 400)
    for count in (3, 24):
        items = np.full((400, 5), float(count))
        # As people are measured: by means of few or many answers.
        errors = rng.normal(size=true.shape) * ITEM_SPREAD / np.sqrt(count)
        scores = true + errors + [TYPICAL[trait] for trait in TRAITS]
        own = rec.standardised(scores)
        assert rec.ranks(own, scores, items).mean() < 0.02
        strangers = rec.ranks(rng.permutation(own), scores, items)
        assert 0.46 < strangers.mean() < 0.54


def test_all_figures_of_people_who_are_recognised(bootstrap: Bootstrap) -> None:
    rng = np.random.default_rng(5)
    scores = 3 + rng.normal(size=(PEOPLE, 5)) / 2
    items = np.full_like(scores, 12)
    found = rec.Recognition.of(0.2 * scores + 7, scores, items, bootstrap)
    assert found.r.mean == pytest.approx(1) and found.identification.mean == 1
    assert set(found.traits) == set(TRAITS) and found.rank.mean < 0.05
    nobody = rec.Recognition.of(np.zeros_like(scores), scores, items, bootstrap)
    assert nobody.r.mean == 0 and nobody.identification.mean == 0.5


def test_rank_correlation_knows_ties() -> None:
    assert rec.spearman(np.array([-2.0, 0, 1, 3]), np.array([1.0, 2, 5, 50])) == pytest.approx(1)
    assert rec.spearman(np.array([0.0, 1, 2]), np.array([4.0, 4, 4])) == 0
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    tied = rec.spearman(np.array([1.0, 2, 3, 4]), np.array([0.0, 5, 5, 9]))
    assert tied == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 2.5, 2.5, 4])[0, 1])


def test_dose_response_is_turned_round_where_a_trait_is_low() -> None:
    usual = np.array([TYPICAL[trait] for trait in TRAITS])
    away = np.array([[1, -1, 0.5, 0, 0]] * 2)
    scores = usual + away
    doses = [-1.0, 0.0, 1.0, 2.0]
    more = [dose * away for dose in doses]
    assert rec.dose_response(doses, more, scores).tolist() == pytest.approx([1, 1])
    less = [-dose * away for dose in doses]
    assert rec.dose_response(doses, less, scores).tolist() == pytest.approx([-1, -1])


def test_a_ratio_whose_resamples_are_undefined_has_no_interval() -> None:
    draws = np.linspace(-0.1, 0.2, 200)
    first = Estimate(0.05, draws, PEOPLE)
    assert first.over(first).interval is None
    certain = Estimate(0.5, draws + 0.5, PEOPLE)
    assert certain.over(certain).interval == (1, 1)
