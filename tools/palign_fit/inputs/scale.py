"""Which other scale answers are on, from the values that are not on ours."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.traits import TRAITS

MIN_REVERSED = 0.5
"""Mean correlation of plus- and minus-keyed items from which answers must be scores: over 150
respondents of PAPI it is -0.81 for agreement and +0.81 for scores."""

_FEWEST = 20
_MOST_CODES = 3
_CODES = frozenset(
    (7, 8, 9, 77, 88, 97, 98, 99, 777, 888, 998, 999, -7, -8, -9, -77, -88, -99, -999)
)
"""What questionnaires write where somebody refused, did not know, or was not asked."""

_NUMBER = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)


class OffScale:
    """The numbers that were refused: their range, and each with its count while they are few."""

    def __init__(self) -> None:
        self.low, self.high, self.whole = math.inf, -math.inf, True
        self.counts: Counter[float] = Counter()

    def add(self, value: Any) -> None:
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            value = float(value)
        if type(value) not in (int, float) or not abs(value) < 1e9:
            return
        self.low, self.high = min(self.low, value), max(self.high, value)
        self.whole = self.whole and value == int(value)
        if value in self.counts or len(self.counts) <= _MOST_CODES:
            self.counts[value] += 1

    @property
    def advice(self) -> str | None:
        """What to do about the refused numbers, if they are codes for "no answer" or of a common scale."""
        guess, values = self.guess, sorted(self.counts)
        codes = len(values) == 1 or (len(values) <= _MOST_CODES and _CODES.issuperset(values))
        if not values or not codes or not self.whole:
            return guess
        times = {
            value: f"{count} times" if count > 1 else "once" for value, count in self.counts.items()
        }
        shown = " and ".join(f"{value:g} ({times[value]})" for value in values)
        left_out = (
            f"The only values off the scale are {shown}: if they stand for no answer, leave these empty "
            "(null in JSON)."
        )
        return f"{left_out} Else: {guess}" if guess else left_out

    @property
    def guess(self) -> str | None:
        """What the refused numbers look like and how to turn them round, if it is a common scale."""
        low, high = self.low, self.high
        if high < low:
            return None
        if low < 0:
            known = {1: "-1 to 1", 2: "-2 to 2", 3: "-3 to 3"}.get(math.ceil(max(-low, high)))
            if known is None:
                return None
            return _looks(known, f"3 + value x {2 / math.ceil(max(-low, high)):g}")
        if high <= 5:
            if self.whole:
                return None
            if high <= 1:
                return _looks("0 to 1", "1 + value x 4")
            return (
                "Answers look like means or factors: whole numbers are wanted, one answer an item."
            )
        if not self.whole and high > 10:
            return _looks("0 to 100", "1 + value / 25")
        for top, text in ((6, "1 + (value - 1) x 4 / 5"), (7, "1 + (value - 1) x 4 / 6")):
            if high <= top:
                return _looks(f"1 to {top}", text)
        if high <= 10:
            return _looks("1 to 9 or 1 to 10", "1 + (value - 1) x 4 / 9")
        return _looks("0 to 100", "1 + value / 25") if high <= 100 else None


def suspicions(table: npt.NDArray[np.uint8], inventory: Inventory) -> list[str]:
    """Warnings about answers of 20 people or more that are on our scale and must mean something else.

    ``table`` uint8 [S, N], 0 missing.
    """
    if len(table) < _FEWEST:
        return []
    # A sample tells it as well as everybody.
    sample = table[:2000]
    warnings = [_zero_based(sample), _reversed_scores(sample, inventory)]
    return [warning for warning in warnings if warning]


def _zero_based(sample: npt.NDArray[np.uint8]) -> str | None:
    """A scale of 0 to 4 looks like ours with gaps and without its highest answer."""
    if sample.max() != 4 or (sample == 0).mean() < 0.01:
        return None
    return (
        f"nobody answers 5 and {(sample == 0).mean():.0%} of the answers are 0 or missing: if the "
        "scale is 0 to 4, add 1 to every answer, or its lowest counts as missing"
    )


def _reversed_scores(table: npt.NDArray[np.uint8], inventory: Inventory) -> str | None:
    """Answers of many people that must be scores, their minus-keyed items reversed."""
    sample = np.where(table == 0, np.nan, table.astype(np.float64))
    correlations = []
    for trait in TRAITS:
        sides = []
        for sign in (1, -1):
            own = [place for place, item in enumerate(inventory.items)
                   if (item.trait, item.sign) == (trait, sign)]  # fmt: skip
            known = np.isfinite(sample[:, own]).sum(1)
            sides.append(
                np.where(known, np.nansum(sample[:, own], 1) / np.maximum(known, 1), np.nan)
            )
        both = np.isfinite(sides).all(0)
        if both.sum() >= _FEWEST and all(side[both].std() > 0 for side in sides):
            correlations.append(np.corrcoef(sides[0][both], sides[1][both])[0, 1])
    if not correlations or np.mean(correlations) < MIN_REVERSED:
        return None
    return (
        "answers look like reversed scores: people who agree with items keyed + agree with items "
        f"keyed - as well (r {np.mean(correlations):.2f}). Answers are about the text as printed: turn items "
        "keyed - back (6 - score), or their personas point the wrong way"
    )


def _looks(scale: str, formula: str) -> str:
    return f"The answers look like a scale of {scale}: turn them into {formula}, rounded."
