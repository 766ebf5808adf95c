"""The heads a fit chose, and the small statistics every method uses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from palign_fit.arrays import Reals, significant
from vllm_palign.persona import FloatArray, IntArray

FOLDS = 5

TINY = 1e-12


@dataclass(frozen=True, eq=False)
class SteeredHeads:
    """The K heads a fit chose, sorted by (layer, head).

    ``layers``, ``heads`` int32 [K]; ``offsets`` float32 [K, D] in activation units for alpha 1;
    ``scores`` float64 [K], what each head was chosen for, measured on held-out examples.
    """

    layers: IntArray
    heads: IntArray
    offsets: FloatArray
    scores: Reals

    @classmethod
    def of(
        cls, flat: npt.NDArray[np.int64], offsets: Reals, scores: Reals, heads: int
    ) -> SteeredHeads:
        """``flat`` int64 [K] rising, layer x ``heads`` + head; ``offsets`` float64 [K, D]."""
        layers, places = np.divmod(flat.astype(np.int32), heads)
        return cls(layers, places, significant(offsets.astype(np.float32)), scores)


def random_folds(count: int, seed: int, folds: int = FOLDS) -> npt.NDArray[np.int64]:
    """A seeded assignment of ``count`` examples to ``folds`` folds of equal size: int64 [count]."""
    return np.random.default_rng(seed).permutation(count) % folds


def correlation(values: Reals, weights: Reals) -> float:
    """Pearson correlation of two float64 [N]; 0 where either is constant."""
    values, weights = values - values.mean(), weights - weights.mean()
    scale = float(np.sqrt((values**2).sum() * (weights**2).sum()))
    return float(values @ weights) / scale if scale > TINY else 0.0
