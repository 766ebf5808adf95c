"""The evaluation from answers to figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from palign_fit.errors import InputError
from palign_fit.evaluation.conditions import CONDITIONS, PLAIN, Personas, settings
from palign_fit.evaluation.speech.plan import SpeechPlan
from palign_fit.evaluation.split import Sheet
from palign_fit.evaluation.tasks import (
    Backend,
    Setting,
    read_perplexity,
    read_statements,
)
from palign_fit.model.prompts import OPENINGS
from palign_fit.progress import Progress, no_progress
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Reals

MEASURES = ("statements", "drift")
"""What can be asked for: how the likelihood of unseen statements follows the subject's answers, and perplexity of
neutral text."""

SPOKEN = ("answers", "damage", "fading")
"""What can be asked for besides, of what the model says: ``evaluation/speech/``."""


@dataclass(frozen=True)
class Plan:
    """What to measure. ``openings``: over how many user turns statements are averaged."""

    conditions: tuple[str, ...]
    measures: tuple[str, ...] = MEASURES
    openings: int = 1
    strength: float = 1.0
    seed: int = 0
    speech: SpeechPlan = field(default_factory=SpeechPlan)

    def __post_init__(self) -> None:
        problems = [
            f"condition {name!r} is unknown" for name in self.conditions if name not in CONDITIONS
        ]
        problems += [
            f"measure {name!r} is unknown"
            for name in self.measures
            if name not in (*MEASURES, *SPOKEN)
        ]
        if not self.conditions or not self.measures:
            problems.append("no condition or no measure")
        if not 1 <= self.openings <= len(OPENINGS):
            problems.append(f"openings is {self.openings}, wanted 1 to {len(OPENINGS)}")
        if not np.isfinite(self.strength):
            problems.append(f"strength is {self.strength}, wanted a number")
        if not 0 <= self.seed < 2**32:
            problems.append(f"seed is {self.seed}, wanted 0 to {2**32 - 1}")
        if problems:
            raise InputError(
                f"{'; '.join(problems)}. Conditions: {', '.join(CONDITIONS)}. "
                f"Measures: {', '.join((*MEASURES, *SPOKEN))}"
            )


@dataclass(frozen=True, eq=False)
class Readings:
    """What the model said under one condition; None where it was not asked.

    ``statements`` float64 [S, N] nats per token, NaN where a subject has no held-out answer; ``perplexity``
    [S].
    """

    statements: Reals | None = None
    perplexity: Reals | None = None


def read_all(
    backend: Backend,
    sheets: Sequence[Sheet],
    inventory: Inventory,
    personas: Personas,
    plan: Plan,
    progress: Progress = no_progress,
) -> dict[str, Readings]:
    """Readings of every condition; plain is always among them, changes are measured from it."""
    names = (PLAIN, *(name for name in plan.conditions if name != PLAIN))
    return {
        name: read(
            backend,
            settings(CONDITIONS[name], sheets, inventory, personas),
            sheets,
            inventory,
            plan,
            lambda what, total, name=name: progress(f"{name}: {what}", total),  # type: ignore[misc]
        )
        for name in names
    }


def read(
    backend: Backend,
    wanted: Sequence[Setting],
    sheets: Sequence[Sheet],
    inventory: Inventory,
    plan: Plan,
    progress: Progress,
) -> Readings:
    """Readings under one setting a subject. Where all settings are plain the model runs once."""
    rows = np.array([sheet.held_out for sheet in sheets])
    if all(setting.system is None and setting.persona_id is None for setting in wanted):
        wanted, asked = wanted[:1], np.asarray(rows.any(0))[None]
    else:
        asked = rows
    items, readings = inventory.items, dict[str, Any]()
    if "statements" in plan.measures:
        openings = OPENINGS[: plan.openings]
        with progress("statements", len(openings) * len(wanted)) as tick:
            readings["statements"] = read_statements(backend, wanted, items, asked, openings, tick)
    if "drift" in plan.measures:
        with progress("drift", len(wanted)) as tick:
            readings["perplexity"] = read_perplexity(backend, wanted, tick)
    return Readings(
        **{
            name: _for_subjects(values, rows, name != "perplexity")
            for name, values in readings.items()
        }
    )


def _for_subjects(values: Reals, rows: Any, per_item: bool) -> Reals:
    """[1 or S, ...] -> [S, ...], NaN outside each subject's rows."""
    spread = np.broadcast_to(values, (len(rows), *values.shape[1:])).copy()
    if per_item:
        spread[~rows] = np.nan
    return spread
