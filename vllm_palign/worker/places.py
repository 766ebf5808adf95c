"""Where the offsets of an effect's heads go among the rows of one rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from vllm_palign.effect import Effect

_KNOWN = 256
"""Sets of steered heads that are kept on the device."""


@dataclass(frozen=True, eq=False)
class SteeredHeads:
    """A set of steered heads, as far as they are on this rank: ``places`` int64 [K] on the device; ``ours``
    bool [K'] says which of all steered heads these are, None if all."""

    places: torch.Tensor
    ours: npt.NDArray[np.bool_] | None

    def offsets(self, effect: Effect) -> npt.NDArray[np.float32]:
        """This rank's part of an effect on these heads, [K, D]."""
        return effect.offsets if self.ours is None else effect.offsets[self.ours]


class HeadPlaces:
    """Places of heads in rows [L, ``stride`` heads each], seen as one list of heads.

    ``layers`` and ``num_heads`` from ``first_head`` on are this rank's. Personas of one model mostly steer
    the same heads, so sets of heads are remembered.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        first_head: int,
        num_heads: int,
        stride: int,
        to_device: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        # [layers, heads] of the whole model as far as there are any of ours, and an end with none.
        last = max(layers, default=-1) + 1
        self._table = np.full((last + 1, first_head + num_heads + 1), -1, dtype=np.int64)
        for index, layer in enumerate(layers):
            start = index * stride
            self._table[layer, first_head:-1] = np.arange(start, start + num_heads)
        self._to_device = to_device
        self._known: dict[tuple[bytes, bytes], SteeredHeads] = {}

    def of(self, effect: Effect) -> SteeredHeads:
        known = (effect.layers.tobytes(), effect.heads.tobytes())
        heads = self._known.get(known)
        if heads is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            # Clipped: what lies beyond this rank's is at the end, with none.
            where = (effect.layers, effect.heads)
            places = self._table.take(np.ravel_multi_index(where, self._table.shape, mode="clip"))
            ours = None
            if np.minimum.reduce(places) < 0:
                ours = places >= 0
                places = places[ours]
            on_device = self._to_device(torch.from_numpy(places))
            heads = self._known[known] = SteeredHeads(on_device, ours)
        return heads
