"""How strongly to steer: as far as neutral text stays as probable as it should."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from palign_fit.errors import FitError
from palign_fit.methods.baseline import steered_perplexity
from palign_fit.model import prompts
from palign_fit.model.likelihood import perplexity
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
    from palign_fit.model.model import OpenedModel

_CORRECTIONS = 3


@dataclass(frozen=True)
class TextBudget(Budget):
    """A budget with the ``model`` to measure by."""

    model: OpenedModel

    @classmethod
    def measure(
        cls,
        model: OpenedModel,
        probes: Sequence[tuple[SteeredHeads, float]],
        tick: Callable[[int], None] = lambda _: None,
    ) -> TextBudget:
        """From real passes under ``probes``, (offsets, disturbance at alpha 1) of typical personas.

        Alpha rises until most probes cost something; the median over probes decides. Raises FitError where
        plain text has no finite perplexity.
        """
        plain = perplexity(model, prompts.NEUTRAL_TEXT)
        if not math.isfinite(plain):
            raise FitError(f"{model.base_model}: gives NaN or Inf likelihoods; try --dtype float32")
        alpha, rate = 1.0, 0.0
        while alpha <= MAX_ALPHA:
            costs = []
            for heads, _ in probes:
                costs.append(math.log(steered_perplexity(model, heads, alpha) / plain))
                tick(1)
            if np.median(costs) >= math.log(TARGET_RATIO) / 2:
                rates = [
                    cost / (alpha**2 * max(disturbance, 1e-30))
                    for cost, (_, disturbance) in zip(costs, probes, strict=True)
                ]
                rate = float(np.median(rates))
                break
            alpha *= 2
        return cls(plain, rate, model)

    def checked(self, heads: SteeredHeads, alpha: float, reach: float = 1.0) -> tuple[float, float]:
        """``reach`` of an alpha near the target, and its real perplexity; starting from ``alpha``.

        Up to three corrections towards TARGET_RATIO, then down until MAX_RATIO is kept or
        MIN_ALPHA is reached. Text that costs next to nothing, or gains, says nothing about alpha, which
        then stays. A shorter reach comes last: what it costs is too little to correct by.
        """
        target = math.log(TARGET_RATIO)
        found = steered_perplexity(self.model, heads, alpha)
        for _ in range(_CORRECTIONS):
            cost = math.log(found / self.plain)
            # NaN is neither: it goes down below.
            if not cost > target / 8 or abs(cost - target) <= target / 4:
                break
            alpha = rounded(alpha * min(max(math.sqrt(target / cost), 0.5), 2.0))
            found = steered_perplexity(self.model, heads, alpha)
        if reach < 1 or self._beyond(found):
            return self.bounded(heads, reach * alpha)
        return alpha, found

    def bounded(self, heads: SteeredHeads, alpha: float, step: float = 0.7) -> tuple[float, float]:
        """``alpha`` and its real perplexity; as many ``step`` lower as MAX_RATIO asks for."""
        alpha = rounded(alpha)
        found = steered_perplexity(self.model, heads, alpha)
        while self._beyond(found) and alpha > MIN_ALPHA:
            alpha = rounded(alpha * step)
            found = steered_perplexity(self.model, heads, alpha)
        return alpha, found

    def strongest(self, heads: SteeredHeads, alpha: float, found: float) -> float:
        """The largest strength that neutral text bears within STRONG_RATIO, where it has the perplexity ``found`` at
        strength 1: expected, and then lowered until a real pass says so."""
        strength = strongest(found / self.plain)
        while strength > 1:
            ratio = steered_perplexity(self.model, heads, strength * alpha) / self.plain
            if ratio <= STRONG_RATIO:
                break
            # NaN, and what grows faster than the square, halve it.
            step = math.sqrt(math.log(STRONG_RATIO) / math.log(ratio)) if ratio > 1 else 0.5
            strength = two_decimals(strength * min(max(step, 0.5), 0.95))
        return strength

    def _beyond(self, perplexity: float) -> bool:
        # NaN is beyond the bound as well.
        return not perplexity <= MAX_RATIO * self.plain
