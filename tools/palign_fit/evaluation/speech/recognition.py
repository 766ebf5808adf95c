"""Whether a reader finds the person in what was said. Letters: S people, Q questions, five traits, P others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palign_fit.evaluation.intervals import Bootstrap, Estimate, average
from vllm_palign.directions.norm import trait_scores
from vllm_palign.directions.numbers import Reals
from vllm_palign.directions.traits import ITEM_SPREAD, TRAIT_SPREAD, TRAITS, TYPICAL

OTHERS = 999
"""Simulated people among whom the right one is looked for."""

_TIE = 1e-9


def profiles(read: Reals, plain: Reals) -> Reals:
    """Readings [S, Q, 5] measured from those of the plain model's answers to the same questions [Q, 5], mean over
    questions: float64 [S, 5], NaN where nothing was read."""
    return mean_known(read - plain, 1)


def mean_known(values: Reals, axis: int) -> Reals:
    """Mean over ``axis``, NaN left out."""
    known = np.isfinite(values)
    count = known.sum(axis)
    sums = np.where(known, values, 0.0).sum(axis)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


@dataclass(frozen=True, eq=False)
class Recognition:
    """``r`` over people between profile and trait score, mean of traits; ``traits`` of each; ``identification``: share
    of pairs where the right pairing fits better; ``rank``: share of others who fit as well as the person or better,
    0.5 by chance."""

    r: Estimate
    traits: dict[str, Estimate]
    identification: Estimate
    rank: Estimate

    @classmethod
    def of(cls, profile: Reals, scores: Reals, items: Reals, bootstrap: Bootstrap) -> Recognition:
        """``profile`` [S, 5] by a reader; ``scores`` [S, 5] of the questionnaire, 1 to 5, NaN where missing, each the
        mean of so many ``items`` [S, 5]."""
        traits = {
            trait: bootstrap.correlation(profile[:, place], scores[:, place])
            for place, trait in enumerate(TRAITS)
        }
        standing = standardised(profile)
        return cls(
            r=average(list(traits.values())),
            traits=traits,
            identification=bootstrap.pair_mean(told_apart(standing, standardised(scores))),
            rank=bootstrap.mean(ranks(standing, scores, items)),
        )

    @property
    def figures(self) -> dict[str, Estimate]:
        return {"r": self.r, "identification": self.identification, "rank": self.rank}


def standardised(values: Reals) -> Reals:
    """[S, 5] in standard deviations from the mean over people; 0 where all are the same."""
    centred = values - mean_known(values, 0)
    spread = np.sqrt(mean_known(centred**2, 0))
    flat = ~(spread > _TIE)
    return np.where(
        flat, np.where(np.isfinite(values), 0.0, np.nan), centred / np.where(flat, 1, spread)
    )


def told_apart(profile: Reals, scores: Reals) -> Reals:
    """For every pair of people whether the right pairing of profiles and scores, both standardised, beats the swapped
    one: float64 [S, S], 0.5 on a tie, NaN on the diagonal."""
    moved = profile[:, None] - profile[None]
    apart = scores[:, None] - scores[None]
    known = np.isfinite(moved) & np.isfinite(apart)
    gain = np.where(known, moved * apart, 0.0).sum(-1)
    wins = np.where(np.abs(gain) < _TIE, 0.5, (np.sign(gain) + 1) / 2)
    wins[~known.any(-1) | np.eye(len(wins), dtype=bool)] = np.nan
    return wins


def ranks(profile: Reals, scores: Reals, items: Reals) -> Reals:
    """Share of people, the right one among them, whose trait scores lie as near to the standardised ``profile`` as the
    right one's or nearer: float64 [S], small is good; NaN of a person alone.

    In standard deviations over people, from the mean of the other people measured: what all have in common is nobody's.
    The others' scores are means of as many ``items`` [S, 5] as the person's: a mean of few lies further out, and would
    look less like anything that was said.
    """
    known = np.isfinite(scores)
    others_known = known.sum(0) - known
    sums = np.where(known, scores, 0.0)
    usual = (sums.sum(0) - sums) / np.maximum(others_known, 1)
    own = np.where(others_known > 0, scores - usual, np.nan) / TRAIT_SPREAD
    rng = np.random.default_rng(0)
    others = trait_scores(rng, OTHERS) / TRAIT_SPREAD
    errors = rng.standard_normal(others.shape) * ITEM_SPREAD / TRAIT_SPREAD
    found = np.full(len(profile), np.nan)
    for place, (said, right) in enumerate(zip(profile, own, strict=True)):
        known = np.isfinite(said) & np.isfinite(right)
        if known.any():
            measured = others + errors / np.sqrt(np.maximum(items[place], 1))
            distance = ((measured - said)[:, known] ** 2).sum(1)
            mine = ((right - said)[known] ** 2).sum()
            found[place] = (1 + (distance <= mine).sum()) / (1 + len(others))
    return found


def dose_response(doses: Sequence[float], by_dose: Sequence[Reals], scores: Reals) -> Reals:
    """Spearman correlation of strength and profile, turned round where a trait is below usual: float64 [S], a mean over
    traits weighted by how far each is from usual.

    ``by_dose``: a profile [S, 5] for each of ``doses``, plain's 0 among them.
    """
    away = scores - np.array([TYPICAL[trait] for trait in TRAITS])
    stacked = np.array(by_dose)
    found = np.full(len(scores), np.nan)
    for person in range(len(scores)):
        rho = np.array(
            [spearman(np.array(doses), stacked[:, person, t]) for t in range(len(TRAITS))]
        )
        known = np.isfinite(rho) & np.isfinite(away[person])
        weight = np.abs(away[person][known])
        if weight.sum() > _TIE:
            found[person] = (rho[known] * np.sign(away[person][known])) @ weight / weight.sum()
    return found


def spearman(a: Reals, b: Reals) -> float:
    """Rank correlation, ties at their mean rank; 0 where one does not move, NaN where a value is missing."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    x, y = (_ranked(one) for one in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > _TIE else 0.0


def _ranked(values: Reals) -> Reals:
    below = (values[:, None] > values[None]).sum(1)
    same = (values[:, None] == values[None]).sum(1)
    return np.asarray(below + (same - 1) / 2)
