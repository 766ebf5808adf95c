"""How to fit, and whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from palign_fit.errors import InputError
from palign_fit.inputs.answers import Subject

METHODS = ("palign", "pas-reference")
MIN_ANSWERED = 6
"""Fewest answers that leave two in every held-out fold. So few make a weak fit, and it says so."""


@dataclass(frozen=True)
class Settings:
    """``alpha`` None finds it; ``heads`` is K; ``seed`` deals items into folds.

    ``check`` measures the chosen alpha by forward passes; without it, figures are first-order
    estimates and a subject costs a millisecond (``pas-reference`` always measures).
    """

    method: str = "palign"
    heads: int = 24
    alpha: float | None = None
    seed: int = 0
    check: bool = True

    def __post_init__(self) -> None:
        problems = []
        if self.method not in METHODS:
            problems.append(f"method is {self.method!r}, wanted one of {', '.join(METHODS)}")
        if self.heads < 1:
            problems.append(f"heads is {self.heads}, wanted at least 1")
        if self.alpha is not None and not 0 < self.alpha <= 100:
            problems.append(f"alpha is {self.alpha}, wanted auto or a number above 0, at most 100")
        if not 0 <= self.seed < 2**32:
            problems.append(f"seed is {self.seed}, wanted 0 to {2**32 - 1}")
        if problems:
            raise InputError("; ".join(problems))


def check_subject(subject: Subject) -> None:
    """Refuse answers that say nothing about a person. Raises InputError."""
    values = subject.agreement[np.isfinite(subject.agreement)]
    if len(values) < MIN_ANSWERED:
        raise InputError(
            f"subject {subject.id!r}: {len(values)} answers, wanted at least {MIN_ANSWERED}, and 60 "
            "or more for a fit worth having; answer more items"
        )
    if (values == values[0]).all():
        raise InputError(
            f"subject {subject.id!r}: all {len(values)} answers are {values[0]:g}, which describes "
            "nobody; wanted different answers to different items"
        )
