"""Figures over people with their bootstrap draws, so that any two can be subtracted. Letters: S people, R resamples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palign_fit.evaluation.intervals import LEVEL, Bootstrap, known_number
from vllm_palign.directions.numbers import Reals


@dataclass(frozen=True, eq=False)
class Sampled:
    """A figure over ``n`` people, and the same over each resample: float64 [R]. NaN where undefined."""

    value: float
    draws: Reals
    n: int

    def minus(self, other: Sampled) -> Sampled:
        """Paired: both are of the same resamples of the same people."""
        return Sampled(self.value - other.value, self.draws - other.draws, min(self.n, other.n))

    def over(self, other: Sampled) -> Sampled:
        """The ratio, undefined where ``other`` is not above 0."""
        draws = np.where(
            other.draws > 0, self.draws / np.where(other.draws > 0, other.draws, 1), np.nan
        )
        value = self.value / other.value if other.value > 0 else float("nan")
        return Sampled(value, draws, min(self.n, other.n))

    def as_json(self) -> dict[str, float | int | None]:
        """With the 95 % percentile interval; of one person there is none."""
        known = self.draws[np.isfinite(self.draws)]
        low = high = None
        if self.n >= 2 and len(known) and np.isfinite(self.value):
            tail = (1 - LEVEL) / 2
            low, high = (known_number(float(one)) for one in np.quantile(known, [tail, 1 - tail]))
        return {"mean": known_number(self.value), "low": low, "high": high, "n": self.n}


def mean(values: Reals, bootstrap: Bootstrap) -> Sampled:
    """Of float64 [S], NaN left out."""
    known = np.isfinite(values)
    counts = bootstrap.counts[:, known].astype(np.float64)
    return Sampled(
        float(values[known].mean()) if known.any() else float("nan"),
        _ratio(counts @ values[known], counts.sum(1)),
        int(known.sum()),
    )


def correlation(x: Reals, y: Reals, bootstrap: Bootstrap) -> Sampled:
    """Pearson correlation over people of x and y, float64 [S]; undefined with fewer than three, 0 where x is the same
    for all."""
    known = np.isfinite(x) & np.isfinite(y)
    n = int(known.sum())
    if n < 3:
        return Sampled(float("nan"), np.full(len(bootstrap.counts), np.nan), n)
    x, y = x[known] - x[known].mean(), y[known] - y[known].mean()
    weights = np.concatenate([np.ones((1, n)), bootstrap.counts[:, known]])
    # A resample of one or two people correlates perfectly or not at all.
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
    return Sampled(float(found[0]), found[1:], n)


def average(figures: Sequence[Sampled]) -> Sampled:
    """The mean of several figures over the same people, those that are defined."""
    draws = np.array([one.draws for one in figures])
    values = np.array([one.value for one in figures])
    return Sampled(
        float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan"),
        _ratio(np.nansum(draws, 0), np.isfinite(draws).sum(0)),
        min(one.n for one in figures),
    )


def pairs(wins: Reals, bootstrap: Bootstrap) -> Sampled:
    """Mean over pairs of different people: symmetric float64 [S, S], NaN left out."""
    known = np.isfinite(wins) & ~np.eye(len(wins), dtype=bool)
    filled, counted = np.where(known, wins, 0.0), known.astype(np.float64)
    weights = bootstrap.counts.astype(np.float64)
    above = ((weights @ filled) * weights).sum(1)
    below = ((weights @ counted) * weights).sum(1)
    value = float(filled.sum() / known.sum()) if known.any() else float("nan")
    return Sampled(value, _ratio(above, below), int(known.any(1).sum()))


def as_json(figures: dict[str, Sampled]) -> dict[str, Any]:
    return {name: figure.as_json() for name, figure in figures.items()}


def _ratio(above: Reals, below: Reals) -> Reals:
    return np.where(below > 0, above / np.where(below > 0, below, 1), np.nan)
