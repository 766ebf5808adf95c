"""Who is measured, and what each of them gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palign_fit.evaluation.conditions import Personas
from palign_fit.evaluation.intervals import Bootstrap
from palign_fit.evaluation.speech.plan import Case, settings_of
from palign_fit.evaluation.split import Sheet, trait_means
from palign_fit.evaluation.tasks import Setting
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Reals
from vllm_palign.directions.traits import TRAITS


@dataclass(frozen=True, eq=False)
class People:
    """S subjects; ``scores`` float64 [S, 5]: the questionnaire's held-out trait scores, NaN where missing."""

    sheets: Sequence[Sheet]
    inventory: Inventory
    personas: Personas
    scores: Reals
    bootstrap: Bootstrap

    @classmethod
    def of(
        cls, sheets: Sequence[Sheet], inventory: Inventory, personas: Personas, seed: int
    ) -> People:
        means = [trait_means(sheet, inventory, sheet.held_out) for sheet in sheets]
        scores = np.array([[own.get(trait, np.nan) for trait in TRAITS] for own in means])
        return cls(sheets, inventory, personas, scores, Bootstrap.draw(len(sheets), seed))

    def name(self, place: int) -> str:
        return self.sheets[place].subject.id

    def settings(self, case: Case) -> list[Setting]:
        """One a subject; of plain a single one."""
        return settings_of(case, self.sheets, self.inventory, self.personas)
