"""What readers make of answers, kept by person."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from palign_fit.evaluation.speech.kept import kept
from palign_fit.evaluation.speech.reader import Pair, Reader
from palign_fit.model.cache import Arrays, Cache
from palign_fit.progress import Progress, Tick
from vllm_palign.directions.numbers import Reals

TOGETHER = 512
"""Readings that are kept at once: a question that many people answered is read once for them."""


class Readings:
    """Asks ``readers``; nothing that is in ``cache`` is read again."""

    def __init__(self, readers: Sequence[Reader], cache: Cache, progress: Progress) -> None:
        self.readers, self.cache, self.progress = readers, cache, progress

    def read(self, reader: Reader, said: Sequence[Sequence[Pair]], name: str) -> Reals:
        """Of S people's Q answers each: float64 [S, Q, 5]."""

        def compute(places: list[int], tick: Tick) -> list[Arrays]:
            pairs = list(dict.fromkeys(pair for place in places for pair in said[place]))
            scores = dict(zip(pairs, reader.read(pairs, tick), strict=True))
            tick(sum(len(said[place]) for place in places) - len(pairs), free=True)
            return [{"read": np.array([scores[pair] for pair in said[place]])} for place in places]

        keys = [{"reader": reader.identity, "said": [list(pair) for pair in own]} for own in said]
        sizes = [len(own) for own in said]
        label = f"{name}, read by {reader.name}"
        found = kept(self.cache, keys, sizes, compute, self.progress, label, TOGETHER)
        return np.array([entry["read"] for entry in found], dtype=np.float64)
