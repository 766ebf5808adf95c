"""Types of the arrays that pass between rooms, and what all of them do to them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Activations = npt.NDArray[np.float32]
"""float32 [N, L, H, D], head outputs before the output projection, in the model's own units."""


def within(values: np.ndarray) -> np.ndarray:
    """``values`` [N, ...] around their mean."""
    return np.asarray(values - values.mean(0, keepdims=True))
