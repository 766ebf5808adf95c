"""Figures over subjects with bootstrap intervals, and the differences of conditions paired by subject. Letters: S
subjects, R resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_palign.directions.numbers import Reals, short

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure over ``n`` subjects, and the same over each resample: float64 [R]. NaN where undefined."""

    mean: float
    draws: Reals
    n: int

    def minus(self, other: Estimate) -> Estimate:
        """Paired: both are of the same resamples of the same subjects."""
        return Estimate(self.mean - other.mean, self.draws - other.draws, min(self.n, other.n))

    def over(self, other: Estimate) -> Estimate:
        """The ratio, undefined where ``other`` is not above 0. If that is so in more than one of twenty resamples, an
        interval of the rest would be of another figure, and there is none."""
        mean = self.mean / other.mean if other.mean > 0 else float("nan")
        draws = _ratio(self.draws, other.draws)
        if np.isfinite(draws).mean() < LEVEL:
            draws = np.full_like(draws, np.nan)
        return Estimate(mean, draws, min(self.n, other.n))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % percentile interval; of one subject there is none."""
        known = self.draws[np.isfinite(self.draws)]
        if self.n < 2 or not len(known) or not np.isfinite(self.mean):
            return None
        tail = (1 - LEVEL) / 2
        low, high = np.quantile(known, [tail, 1 - tail])
        return float(low), float(high)

    def as_json(self) -> dict[str, float | int | None]:
        low, high = self.interval or (None, None)
        bounds = {"mean": self.mean, "low": low, "high": high}
        return {**{name: known_number(value) for name, value in bounds.items()}, "n": self.n}


UNKNOWN = Estimate(float("nan"), np.zeros(0), 0)
"""Of what was not measured."""


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
        weights = self.counts[:, known]
        value = float(values[known].mean()) if known.any() else float("nan")
        return Estimate(value, _ratio(weights @ values[known], weights.sum(1)), int(known.sum()))

    def pair_mean(self, pairs: Reals) -> Estimate:
        """Mean over pairs of different subjects: symmetric float64 [S, S], NaN left out."""
        known = np.isfinite(pairs) & ~np.eye(len(pairs), dtype=bool)
        filled, counted = np.where(known, pairs, 0.0), known.astype(np.float64)
        weights = self.counts.astype(np.float64)
        above = ((weights @ filled) * weights).sum(1)
        below = ((weights @ counted) * weights).sum(1)
        value = float(filled.sum() / known.sum()) if known.any() else float("nan")
        return Estimate(value, _ratio(above, below), int(known.any(1).sum()))

    def correlation(self, x: Reals, y: Reals) -> Estimate:
        """Pearson correlation over subjects of x and y, float64 [S]; undefined with fewer than three, 0 where x is the
        same for all."""
        known = np.isfinite(x) & np.isfinite(y)
        n = int(known.sum())
        if n < 3:
            return Estimate(float("nan"), np.full(len(self.counts), np.nan), n)
        x, y = x[known] - x[known].mean(), y[known] - y[known].mean()
        weights = np.concatenate([np.ones((1, n)), self.counts[:, known]])
        # A resample of one or two subjects correlates perfectly or not at all.
        weights = np.where((weights > 0).sum(1, keepdims=True) >= 3, weights, 0.0)
        total = np.maximum(weights.sum(1), 1)
        mx, my = weights @ x / total, weights @ y / total
        shared = weights @ (x * y) / total - mx * my
        vx, vy = weights @ x**2 / total - mx**2, weights @ y**2 / total - my**2
        tiny = 1e-12
        flat = vx <= tiny * max(float(x @ x), tiny)
        defined = (vy > tiny * max(float(y @ y), tiny)) & (weights.sum(1) > 0)
        found = np.where(
            flat, 0.0, shared / np.sqrt(np.where(flat, 1.0, vx) * np.where(defined, vy, 1.0))
        )
        found = np.where(defined, found, np.nan)
        return Estimate(float(found[0]), found[1:], n)


def average(figures: Sequence[Estimate]) -> Estimate:
    """The mean of several figures over the same subjects, those that are defined."""
    draws = np.array([one.draws for one in figures])
    values = np.array([one.mean for one in figures])
    return Estimate(
        float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan"),
        _ratio(np.nansum(draws, 0), np.isfinite(draws).sum(0)),
        min((one.n for one in figures if np.isfinite(one.mean)), default=0),
    )


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


def as_json(figures: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: figure.as_json() for name, figure in figures.items()}


def measured_json(measured: Measured, bootstrap: Bootstrap) -> dict[str, Any]:
    """A measure JSON-ready: estimate, subjects, traits."""
    own = {"per_subject": [known_number(value) for value in measured.values]}
    if measured.traits is None:
        return {**measured.estimate.as_json(), **own}
    traits = {trait: bootstrap.mean(values) for trait, values in measured.traits.items()}
    return {
        **measured.estimate.as_json(),
        **own,
        "traits": as_json(traits),
    }


def known_number(value: float | None) -> float | None:
    """Six significant digits; None for what is not a number, which JSON cannot hold."""
    return short(value) if value is not None and np.isfinite(value) else None


def _ratio(above: Reals, below: Reals) -> Reals:
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)
