"""Who is measured, and what is asked of them: conditions at strengths, under system prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from palign_fit.errors import InputError
from palign_fit.evaluation.conditions import CONDITIONS, PLAIN, Personas, settings
from palign_fit.evaluation.intervals import Bootstrap
from palign_fit.evaluation.speech.script import PARTS, STORED
from palign_fit.evaluation.split import Sheet, trait_means
from palign_fit.evaluation.tasks import Setting
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Reals
from vllm_palign.directions.traits import TRAITS

NONE = ""
"""No system prompt."""

PROMPT = "personality-prompt"
"""What personas are compared with."""

TURNS = 50
"""Turns of a scripted conversation."""


@dataclass(frozen=True)
class SpeechPlan:
    """``systems``: prompts that everybody gets, NONE for none; ``each``: questions a trait, None for all;
    ``turns`` of each conversation."""

    strengths: tuple[float, ...] = (1.0,)
    systems: tuple[str, ...] = (NONE, STORED)
    part: str = "test"
    each: int | None = None
    turns: int = TURNS

    def __post_init__(self) -> None:
        problems = []
        if not self.strengths or not np.isfinite(self.strengths).all():
            problems.append(f"--strengths {self.strengths}: wanted numbers, as 0.5,1,2")
        if 0.0 in self.strengths:
            problems.append("--strengths 0: that is plain, which is always there; leave it out")
        if self.part not in PARTS:
            problems.append(f"--questions {self.part!r}: wanted {' or '.join(PARTS)}, or a number")
        if self.each is not None and self.each < 1:
            problems.append(f"--questions {self.each}: wanted at least 1 a trait")
        if not 2 <= self.turns <= TURNS:
            problems.append(f"--turns {self.turns}: wanted 2 to {TURNS}")
        if problems:
            raise InputError("; ".join(problems))


@dataclass(frozen=True)
class Case:
    """One condition, at one strength if it steers, under one system prompt."""

    condition: str
    strength: float | None
    system: str

    @property
    def label(self) -> str:
        """For whoever waits."""
        dose = "" if self.strength is None else f" {self.strength:g}"
        return f"{self.condition}{dose}{', system prompt' if self.system else ''}"

    def as_json(self) -> dict[str, Any]:
        return {
            "condition": self.condition,
            "strength": self.strength,
            "system": self.system or None,
        }


def cases(
    conditions: Sequence[str], strengths: Sequence[float], systems: Sequence[str]
) -> Iterator[Case]:
    """Plain first, under each system prompt."""
    names = (PLAIN, *(name for name in conditions if name != PLAIN))
    for system in systems:
        for name in names:
            doses = strengths if CONDITIONS[name].method else (None,)
            for strength in doses:
                yield Case(name, strength, system)


@dataclass(frozen=True, eq=False)
class People:
    """S subjects; ``scores`` float64 [S, 5]: the questionnaire's held-out trait scores, NaN where missing; ``items``
    float64 [S, 5]: of how many answers each is the mean."""

    sheets: Sequence[Sheet]
    inventory: Inventory
    personas: Personas
    scores: Reals
    items: Reals
    bootstrap: Bootstrap

    @classmethod
    def of(
        cls, sheets: Sequence[Sheet], inventory: Inventory, personas: Personas, seed: int
    ) -> People:
        means, counts = (
            [trait_means(sheet, inventory, sheet.held_out, middle) for sheet in sheets]
            for middle in (np.mean, len)
        )
        scores = np.array([[own.get(trait, np.nan) for trait in TRAITS] for own in means])
        items = np.array([[own.get(trait, 0.0) for trait in TRAITS] for own in counts])
        return cls(sheets, inventory, personas, scores, items, Bootstrap.draw(len(sheets), seed))

    def name(self, place: int) -> str:
        return self.sheets[place].subject.id

    def settings(self, case: Case) -> list[Setting]:
        """One setting a subject; of plain a single one. Who is steered is steered as a server does by default."""
        own = settings(CONDITIONS[case.condition], self.sheets, self.inventory, self.personas)
        return [
            replace(
                one,
                system=" ".join(filter(None, (one.system, case.system))) or None,
                strength=case.strength,
                scope="answers",
            )
            for one in (own[:1] if case.condition == PLAIN else own)
        ]
