"""Means over subjects with bootstrap intervals, and the differences of conditions paired by subject."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_palign.directions.numbers import Reals, short

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` subjects and its 95 % percentile interval; None where undefined."""

    mean: float | None
    low: float | None
    high: float | None
    n: int

    def as_json(self) -> dict[str, float | int | None]:
        bounds = {"mean": self.mean, "low": self.low, "high": self.high}
        return {**{name: known_number(value) for name, value in bounds.items()}, "n": self.n}


@dataclass(frozen=True)
class Bootstrap:
    """Seeded resamples of the subjects, the same for every measure so that differences pair up."""

    counts: npt.NDArray[np.int64]
    """int64 [RESAMPLES, S]: how often each subject is drawn."""

    @classmethod
    def draw(cls, subjects: int, seed: int, resamples: int = RESAMPLES) -> Bootstrap:
        drawn = np.random.default_rng(seed).integers(0, subjects, (resamples, subjects))
        counts = np.zeros((resamples, subjects), dtype=np.int64)
        np.add.at(counts, (np.arange(resamples)[:, None], drawn), 1)
        return cls(counts)

    def mean(self, values: Reals) -> Estimate:
        """Mean of float64 [S]; NaN subjects are left out."""
        known = np.isfinite(values)
        if not known.any():
            return Estimate(None, None, None, 0)
        weights = self.counts[:, known]
        totals = weights.sum(1)
        means = (weights @ values[known])[totals > 0] / totals[totals > 0]
        return _estimate(float(values[known].mean()), means, int(known.sum()))

    def pair_mean(self, pairs: Reals) -> Estimate:
        """Mean over pairs of different subjects: symmetric float64 [S, S], NaN left out."""
        known = np.isfinite(pairs) & ~np.eye(len(pairs), dtype=bool)
        if not known.any():
            return Estimate(None, None, None, 0)
        filled = np.where(known, pairs, 0.0)
        weights = self.counts.astype(np.float64)
        above = ((weights @ filled) * weights).sum(1)
        below = ((weights @ known.astype(np.float64)) * weights).sum(1)
        means = above[below > 0] / below[below > 0]
        subjects = int(known.any(1).sum())
        return _estimate(float(filled.sum() / known.sum()), means, subjects)


@dataclass(frozen=True, eq=False)
class Measured:
    """One measure of one condition.

    ``values`` float64 [S], one a subject; ``estimate`` over subjects; ``pairs`` [S, S] where the
    measure compares subjects; ``traits``: the same by trait.
    """

    values: Reals
    estimate: Estimate
    pairs: Reals | None = None
    traits: Mapping[str, Reals] | None = None


def differences(
    ours: Mapping[str, Measured], others: Mapping[str, Measured], bootstrap: Bootstrap
) -> dict[str, Any]:
    """``one`` minus ``other`` in every common measure, paired by subject, JSON-ready."""
    estimates = {}
    for key in sorted(ours.keys() & others.keys()):
        mine, theirs = ours[key], others[key]
        if mine.pairs is not None and theirs.pairs is not None:
            estimate = bootstrap.pair_mean(mine.pairs - theirs.pairs)
        else:
            estimate = bootstrap.mean(mine.values - theirs.values)
        estimates[key] = estimate.as_json()
    return estimates


def measured_json(measured: Measured, bootstrap: Bootstrap) -> dict[str, Any]:
    """A measure JSON-ready: estimate, subjects, traits."""
    own = {"per_subject": [known_number(value) for value in measured.values]}
    if measured.traits is None:
        return {**measured.estimate.as_json(), **own}
    traits = {trait: bootstrap.mean(values) for trait, values in measured.traits.items()}
    return {
        **measured.estimate.as_json(),
        **own,
        "traits": {trait: estimate.as_json() for trait, estimate in traits.items()},
    }


def known_number(value: float | None) -> float | None:
    """Six significant digits; None for what is not a number, which JSON cannot hold."""
    return short(value) if value is not None and np.isfinite(value) else None


def _estimate(mean: float, resampled: Reals, n: int) -> Estimate:
    if n < 2:
        return Estimate(mean, None, None, n)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), n)
