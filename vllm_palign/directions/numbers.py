"""Small statistics that every method uses, and how many digits a file keeps."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Reals = npt.NDArray[np.float64]

TINY = 1e-12


def short(value: float) -> float:
    """Six significant digits: enough to read, too few to carry noise of the last bit."""
    return float(f"{value:.6g}")


def significant(values: npt.NDArray[np.float32], digits: int = 6) -> npt.NDArray[np.float32]:
    """As ``short``, for an array that goes into a file."""
    exact = values.astype(np.float64)
    power = np.floor(np.log10(np.maximum(np.abs(exact), 1e-30)))
    step = 10.0 ** (power - (digits - 1))
    return np.asarray(np.round(exact / step) * step, dtype=np.float32)


def correlation(values: Reals, weights: Reals) -> float:
    """Pearson correlation of two float64 [N]; 0 where either is constant."""
    values, weights = values - values.mean(), weights - weights.mean()
    scale = float(np.sqrt((values**2).sum() * (weights**2).sum()))
    return float(values @ weights) / scale if scale > TINY else 0.0


def chance(count: int) -> float:
    """The correlation over ``count`` items that have nothing to do with each other which chance alone exceeds in
    5 % of cases."""
    return 1.645 / math.sqrt(count)


def effect(change: Reals, wanted: Reals) -> float:
    """Mean change in the wanted direction; centred, so that agreeing with everything counts nothing."""
    centred = wanted - wanted.mean()
    total = np.abs(centred).sum()
    return float((change * centred).sum() / total) if total else 0.0
