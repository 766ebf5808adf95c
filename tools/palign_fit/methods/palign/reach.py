"""How far along its directions a model can be pushed before it stops following them.

Likelihood follows an offset in proportion only while the offset is small. Beyond that, steering for a
trait and against it begin to do the same, which says nothing about a person. Some models get there before
their language suffers (docs/fitting.md); perplexity alone would steer them too hard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from palign_fit.methods.record import is_weak
from palign_fit.model.cache import Arrays, Cache

REACHES = (1.0, 0.5, 0.25)
"""Parts of the alpha that perplexity allows, tried on every model."""

ENOUGH = 0.95
"""The longest reach is taken that carries this part of what the best one does: a persona twice as strong is worth
more than a correlation of 0.31 instead of 0.30 (docs/fitting.md)."""

FEWEST = 60
"""With fewer items nothing can be told; the whole alpha is taken."""


def find_reach(
    carried: Callable[[], Sequence[float]],
    items: int,
    *,
    key: dict[str, object],
    cache: Cache | None,
) -> float:
    """One of REACHES. ``carried``: how well ``items`` held-out statements follow each of them,
    correlations. The whole alpha where even the best could be chance."""
    if items < FEWEST:
        return REACHES[0]

    def compute() -> Arrays:
        return {"carried": np.array(carried())}

    found = (cache or Cache(None)).load_or_compute(key, compute)["carried"]
    best = float(found.max())
    if is_weak(best, items):
        return REACHES[0]
    return next(reach for reach, one in zip(REACHES, found, strict=True) if one >= ENOUGH * best)
