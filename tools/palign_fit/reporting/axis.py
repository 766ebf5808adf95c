"""A value axis of a picture: where a number lies, and which ticks read well."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """``place`` in px, and what is written there."""

    place: float
    label: str


@dataclass(frozen=True)
class Axis:
    """Reals ``low`` to ``high`` on the pixels ``start`` to ``end``; ``step`` between ticks."""

    low: float
    high: float
    step: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, most: int = 5) -> Axis:
        """Round numbers around ``values`` (one at least), at most about ``most`` ticks."""
        known = list(values)
        low, high = min(known), max(known)
        if high - low < 1e-9 * max(abs(high), 1.0):
            low, high = low - max(abs(low), 1.0) * 0.05, high + max(abs(high), 1.0) * 0.05
        step = _round_step((high - low) / most)
        return cls(math.floor(low / step) * step, math.ceil(high / step) * step, step, start, end)

    def place(self, value: float) -> float:
        """px of ``value``, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[Tick]:
        count = round((self.high - self.low) / self.step)
        values = [self.low + place * self.step for place in range(count + 1)]
        return [Tick(self.place(value), self._label(value)) for value in values]

    def _label(self, value: float) -> str:
        if abs(self.high) >= 1e5 or abs(self.low) >= 1e5:
            return f"{value:.2g}"
        digits = max(0, -math.floor(math.log10(self.step)))
        # Adding 0 turns -0.0 into 0.
        return f"{round(value, digits) + 0:.{digits}f}".replace("-", "−")


def _round_step(raw: float) -> float:
    """The next of 1, 2, 5 x 10^n from ``raw`` on."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(one * power for one in (1, 2, 5, 10) if one * power >= raw * (1 - 1e-9))
