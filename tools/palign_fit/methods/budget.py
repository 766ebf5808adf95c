"""How strongly to steer: as far as neutral text stays as probable as it should."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from palign_fit.errors import FitError
from palign_fit.methods.baseline import steered_perplexity
from palign_fit.methods.steering import SteeredHeads
from palign_fit.model import prompts
from palign_fit.model.likelihood import perplexity

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel

TARGET_RATIO = 1.03
"""Perplexity of neutral text, steered by plain, that alpha aims at. A request's strength comes on
top: the logarithm of the ratio grows with its square, so that strength 2 is still within 1.15. Aiming
higher does not carry the person better (docs/experiments/alpha.md): likelihood follows less and less linearly."""

MAX_RATIO = 1.15
"""Most that a checked alpha may cost; beyond it language starts to break."""

MIN_ALPHA, MAX_ALPHA = 0.05, 20.0
_CORRECTIONS = 3


@dataclass(frozen=True)
class Budget:
    """``plain`` perplexity of the neutral text; ``rate``: log ratio per alpha² and unit of disturbance.

    A small offset changes perplexity by a quadratic form. ``plan`` knows its shape from the noise of
    gradients; ``rate`` ties it to real passes.
    """

    model: OpenedModel
    plain: float
    rate: float

    @classmethod
    def measure(
        cls,
        model: OpenedModel,
        probes: Sequence[tuple[SteeredHeads, float]],
        tick: Callable[[int], None] = lambda _: None,
    ) -> Budget:
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
        return cls(model, plain, rate)

    def predicted(self, alpha: float, disturbance: float) -> float:
        """Perplexity expected at ``alpha``, given the disturbance at alpha 1."""
        return self.plain * math.exp(min(self.rate * disturbance * alpha**2, 50.0))

    def alpha(self, disturbance: float, reach: float = 1.0) -> float:
        """``reach`` of the alpha expected to cost TARGET_RATIO, three significant digits, within
        bounds."""
        cost = self.rate * disturbance
        whole = math.sqrt(math.log(TARGET_RATIO) / cost) if cost > 0 else MAX_ALPHA
        return _rounded(reach * min(whole, MAX_ALPHA))

    def most(self, reach: float = 1.0) -> float:
        """The largest alpha that is chosen, whatever text bears."""
        return _rounded(reach * MAX_ALPHA)

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
            alpha = _rounded(alpha * min(max(math.sqrt(target / cost), 0.5), 2.0))
            found = steered_perplexity(self.model, heads, alpha)
        if reach < 1 or self._beyond(found):
            return self.bounded(heads, reach * alpha)
        return alpha, found

    def bounded(self, heads: SteeredHeads, alpha: float, step: float = 0.7) -> tuple[float, float]:
        """``alpha`` and its real perplexity; as many ``step`` lower as MAX_RATIO asks for."""
        alpha = _rounded(alpha)
        found = steered_perplexity(self.model, heads, alpha)
        while self._beyond(found) and alpha > MIN_ALPHA:
            alpha = _rounded(alpha * step)
            found = steered_perplexity(self.model, heads, alpha)
        return alpha, found

    def _beyond(self, perplexity: float) -> bool:
        # NaN is beyond the bound as well.
        return not perplexity <= MAX_RATIO * self.plain


def _rounded(alpha: float) -> float:
    return float(f"{min(max(alpha, MIN_ALPHA), MAX_ALPHA):.3g}")
