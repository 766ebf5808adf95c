"""Types of the arrays that pass between rooms, and what several rooms' methods do to them: centring, and seeded folds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Activations = npt.NDArray[np.float32]
"""float32 [N, L, H, D], head outputs before the output projection, in the model's own units."""

FOLDS = 5


def within(values: np.ndarray) -> np.ndarray:
    """``values`` [N, ...] around their mean."""
    return np.asarray(values - values.mean(0, keepdims=True))


def random_folds(count: int, seed: int, folds: int = FOLDS) -> npt.NDArray[np.int64]:
    """A seeded assignment of ``count`` examples to ``folds`` folds of equal size: int64 [count]."""
    return np.random.default_rng(seed).permutation(count) % folds
