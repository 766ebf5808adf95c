"""How strongly to steer: as far as ordinary chats stay what they were."""

from __future__ import annotations

import math
from dataclasses import dataclass

TARGET_RATIO = 1.05
"""Perplexity of chats, steered by plain, that alpha aims at: a divergence of 0.05 nats a token. A request's strength
comes on top: the logarithm of the ratio grows with its square, or faster (``strongest``). Aiming higher is heard more
clearly, and small models begin to repeat themselves (docs/experiments/speech.md)."""

MAX_RATIO = 1.15
"""Most that a checked alpha may cost; beyond it language starts to break."""

STRONG_RATIO = 1.3
"""Most that the strongest request that a persona allows may cost."""

MAX_STRENGTH = 10.0
"""No persona says that it may be asked for more strongly."""

MIN_ALPHA, MAX_ALPHA = 0.05, 100.0


@dataclass(frozen=True)
class Budget:
    """``plain`` perplexity of chats; ``rate``: log ratio per alpha² and unit of disturbance.

    A small offset changes perplexity by a quadratic form, whose shape directions know; ``rate`` ties it to
    real passes.
    """

    plain: float
    rate: float

    def predicted(self, alpha: float, disturbance: float) -> float:
        """Perplexity expected at ``alpha``, given the disturbance at alpha 1."""
        return self.plain * math.exp(min(self.rate * disturbance * alpha**2, 50.0))

    def alpha(self, disturbance: float, reach: float = 1.0, ratio: float = TARGET_RATIO) -> float:
        """``reach`` of the alpha expected to cost ``ratio``, three significant digits, within
        bounds."""
        cost = self.rate * disturbance
        whole = math.sqrt(math.log(ratio) / cost) if cost > 0 else MAX_ALPHA
        return rounded(reach * min(whole, MAX_ALPHA))

    def most(self, reach: float = 1.0) -> float:
        """The largest alpha that is chosen, whatever chats bear."""
        return rounded(reach * MAX_ALPHA)


def rounded(alpha: float) -> float:
    """``alpha`` as it is chosen: three significant digits, within MIN_ALPHA and MAX_ALPHA."""
    return float(f"{min(max(alpha, MIN_ALPHA), MAX_ALPHA):.3g}")


def strongest(ratio: float) -> float:
    """The largest strength at which chats are expected to cost STRONG_RATIO, where they cost ``ratio`` at
    strength 1: two decimals, 1 to MAX_STRENGTH. A request that names no strength asks for 1 and is let in."""
    if not ratio > 1:
        return MAX_STRENGTH
    return two_decimals(math.sqrt(math.log(STRONG_RATIO) / math.log(ratio)))


def two_decimals(strength: float) -> float:
    """``strength`` rounded down to two decimals, within 1 and MAX_STRENGTH."""
    return math.floor(min(max(strength, 1.0), MAX_STRENGTH) * 100) / 100
