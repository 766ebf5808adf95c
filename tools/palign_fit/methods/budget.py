"""How strongly to steer: as far as ordinary chats stay what they were."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vllm_palign.directions.basis import SteeredHeads
from vllm_palign.directions.budget import (
    MAX_ALPHA,
    MAX_RATIO,
    MIN_ALPHA,
    STRONG_RATIO,
    TARGET_RATIO,
    Budget,
    rounded,
    strongest,
    two_decimals,
)

if TYPE_CHECKING:
    from palign_fit.model.chats import Chats

_CORRECTIONS = 3


@dataclass(frozen=True)
class TextBudget(Budget):
    """A budget with the ``chats`` to measure by."""

    chats: Chats = field(compare=False)

    @classmethod
    def measure(
        cls,
        chats: Chats,
        probes: Sequence[tuple[SteeredHeads, float]],
        tick: Callable[[int], None] = lambda _: None,
    ) -> TextBudget:
        """From real passes under ``probes``, (offsets, disturbance at alpha 1) of typical personas.

        Alpha rises until the probe of middle disturbance costs something, then all are tried there; their median
        decides.
        """

        def cost(heads: SteeredHeads, alpha: float) -> float:
            tick(1)
            return math.log(chats.under(heads, alpha) / chats.plain)

        middle, _ = sorted(probes, key=lambda probe: probe[1])[len(probes) // 2]
        alpha = 1.0
        while alpha <= MAX_ALPHA and cost(middle, alpha) < math.log(TARGET_RATIO) / 2:
            alpha *= 2
        if alpha > MAX_ALPHA:
            return cls(chats.plain, 0.0, chats)
        rates = [
            cost(heads, alpha) / (alpha**2 * max(disturbance, 1e-30))
            for heads, disturbance in probes
        ]
        return cls(chats.plain, float(np.median(rates)), chats)

    def checked(self, heads: SteeredHeads, alpha: float, reach: float = 1.0) -> tuple[float, float]:
        """``reach`` of an alpha near the target, and its real perplexity; starting from ``alpha``.

        Up to three corrections towards TARGET_RATIO, then down until MAX_RATIO is kept or
        MIN_ALPHA is reached. Chats that cost next to nothing say nothing about alpha, which
        then stays. A shorter reach comes last: what it costs is too little to correct by.
        """
        target = math.log(TARGET_RATIO)
        found = self.chats.under(heads, alpha)
        for _ in range(_CORRECTIONS):
            cost = math.log(found / self.plain)
            # NaN is neither: it goes down below.
            if not cost > target / 8 or abs(cost - target) <= target / 4:
                break
            alpha = rounded(alpha * min(max(math.sqrt(target / cost), 0.5), 2.0))
            found = self.chats.under(heads, alpha)
        if reach < 1 or self._beyond(found):
            return self.bounded(heads, reach * alpha)
        return alpha, found

    def bounded(self, heads: SteeredHeads, alpha: float, step: float = 0.7) -> tuple[float, float]:
        """``alpha`` and its real perplexity; as many ``step`` lower as MAX_RATIO asks for."""
        alpha = rounded(alpha)
        found = self.chats.under(heads, alpha)
        while self._beyond(found) and alpha > MIN_ALPHA:
            alpha = rounded(alpha * step)
            found = self.chats.under(heads, alpha)
        return alpha, found

    def strongest(self, heads: SteeredHeads, alpha: float, found: float) -> float:
        """The largest strength that chats bear within STRONG_RATIO, where they have the perplexity ``found`` at
        strength 1: expected, and then lowered until a real pass says so."""
        strength = strongest(found / self.plain)
        while strength > 1:
            ratio = self.chats.under(heads, strength * alpha) / self.plain
            if ratio <= STRONG_RATIO:
                break
            # NaN, and what grows faster than the square, halve it.
            step = math.sqrt(math.log(STRONG_RATIO) / math.log(ratio)) if ratio > 1 else 0.5
            strength = two_decimals(strength * min(max(step, 0.5), 0.95))
        return strength

    def _beyond(self, perplexity: float) -> bool:
        # NaN is beyond the bound as well.
        return not perplexity <= MAX_RATIO * self.plain
