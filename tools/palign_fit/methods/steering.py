"""The heads a fit chose, as a persona keeps them, and folds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vllm_palign.directions.basis import SteeredHeads
from vllm_palign.directions.numbers import Reals, significant

FOLDS = 5


def steered_heads(
    flat: npt.NDArray[np.int64], offsets: Reals, scores: Reals, heads: int
) -> SteeredHeads:
    """``flat`` int64 [K] rising, layer x ``heads`` + head; ``offsets`` float64 [K, D]."""
    layers, places = np.divmod(flat.astype(np.int32), heads)
    return SteeredHeads(layers, places, significant(offsets.astype(np.float32)), scores)


def random_folds(count: int, seed: int, folds: int = FOLDS) -> npt.NDArray[np.int64]:
    """A seeded assignment of ``count`` examples to ``folds`` folds of equal size: int64 [count]."""
    return np.random.default_rng(seed).permutation(count) % folds
