"""Types of the arrays that pass between rooms, what all of them do to them, and how many digits are kept."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Reals = npt.NDArray[np.float64]


Activations = npt.NDArray[np.float32]
"""float32 [N, L, H, D], head outputs before the output projection, in the model's own units."""


def within(values: np.ndarray) -> np.ndarray:
    """``values`` [N, ...] around their mean."""
    return np.asarray(values - values.mean(0, keepdims=True))


def short(value: float) -> float:
    """Six significant digits: enough to read, too few to carry noise of the last bit."""
    return float(f"{value:.6g}")


def significant(values: npt.NDArray[np.float32], digits: int = 6) -> npt.NDArray[np.float32]:
    """As ``short``, for an array that goes into a file."""
    exact = values.astype(np.float64)
    power = np.floor(np.log10(np.maximum(np.abs(exact), 1e-30)))
    step = 10.0 ** (power - (digits - 1))
    return np.asarray(np.round(exact / step) * step, dtype=np.float32)
