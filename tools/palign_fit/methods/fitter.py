"""What every method is to those who run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from palign_fit.inputs.answers import Refusal, Subject
from vllm_palign.persona import Persona


class Fitter(Protocol):
    """What fits: everything that no subject changes is prepared."""

    def fit_batch(self, subjects: Sequence[Subject]) -> list[Persona | Refusal]:
        """One result a subject, in order; what else is in the batch changes none of them."""
