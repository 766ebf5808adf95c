"""Open-ended evaluation: the model answers questions, a judge rates how well they fit the person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palign_fit.errors import FitError, InputError
from palign_fit.evaluation.conditions import CONDITIONS, PALIGN, PLAIN, Personas, settings
from palign_fit.evaluation.evaluating import head
from palign_fit.evaluation.figures import Measured, differences, measured_json
from palign_fit.evaluation.intervals import Bootstrap
from palign_fit.evaluation.judge import QUESTIONS, Question, Rater, Verdict, judge_messages
from palign_fit.evaluation.split import Sheet, trait_means
from palign_fit.evaluation.tasks import Backend, Setting, Speech
from palign_fit.inputs.inventory import Inventory
from palign_fit.inputs.traits import TRAITS
from palign_fit.progress import Progress, no_progress

FORMAT, FORMAT_VERSION = "palign.judgement", 1
DEFAULT_CONDITIONS = (PLAIN, "personality-prompt", PALIGN)
_JUDGED = (PLAIN, "few-shot", "personality-prompt", PALIGN, "palign+prompt")


@dataclass(frozen=True)
class JudgePlan:
    """What is asked and rated; ``seed`` orders the judge's cases and draws the bootstrap."""

    conditions: tuple[str, ...] = DEFAULT_CONDITIONS
    max_tokens: int = 120
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"condition {one!r} is unknown" for one in self.conditions if one not in _JUDGED
        ]
        if not self.conditions:
            problems.append("no condition")
        if self.max_tokens < 1:
            problems.append(f"max-tokens is {self.max_tokens}, wanted at least 1")
        if not 0 <= self.seed < 2**32:
            problems.append(f"seed is {self.seed}, wanted 0 to {2**32 - 1}")
        if problems:
            raise InputError(f"{'; '.join(problems)}. Conditions: {', '.join(_JUDGED)}")


@dataclass(frozen=True, eq=False)
class Case:
    """One answer to be rated: by which subject's description, under which condition."""

    subject: int
    condition: str
    question: Question
    answer: str


def judge_personas(
    backend: Backend,
    rater: Rater,
    sheets: Sequence[Sheet],
    inventory: Inventory,
    personas: Personas,
    plan: JudgePlan,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """The whole report as JSON-ready data (docs/evaluation.md has the schema).

    Raises FitError where the judge gave no rating at all.
    """
    cases = _answers(backend, sheets, inventory, personas, plan, progress)
    persons = [trait_means(sheet, inventory, sheet.held_out) for sheet in sheets]
    # Shuffled, so that neither a condition nor a person comes in a row; the judge sees no names.
    order = np.random.default_rng(plan.seed).permutation(len(cases))
    shown = [
        judge_messages(persons[cases[at].subject], cases[at].question.text, cases[at].answer)
        for at in order
    ]
    with progress("ratings", len(cases)) as tick:
        given = rater.rate(shown, tick)
    verdicts = [verdict for _, verdict in sorted(zip(order.tolist(), given, strict=True))]
    if all(verdict.rating is None for verdict in verdicts):
        problems = Counter(verdict.problem for verdict in verdicts)
        raise FitError(
            f"{rater.model} at {rater.url}: no rating for any of {len(cases)} answers "
            f"({', '.join(f'{count} {name}' for name, count in problems.items())})"
        )
    return {
        **head(FORMAT, FORMAT_VERSION, backend, inventory),
        "judge": {"model": rater.model},
        "settings": {
            "conditions": list(plan.conditions),
            "max_tokens": plan.max_tokens,
            "strength": plan.strength,
            "seed": plan.seed,
        },
        "subjects": [
            {
                "id": sheet.subject.id,
                "train_items": int(sheet.train.sum()),
                "held_out_items": int(sheet.held_out.sum()),
                "seen_in_fitting": sheet.seen,
                "traits": {trait: {"target": score} for trait, score in scores.items()},
            }
            for sheet, scores in zip(sheets, persons, strict=True)
        ],
        "conditions": _figures(cases, verdicts, len(sheets), plan),
        "baselines": {},
        "answers": [
            {
                "subject": sheets[case.subject].subject.id,
                "condition": case.condition,
                "trait": case.question.trait,
                "question": case.question.text,
                "answer": case.answer,
                "rating": verdict.rating,
                "problem": verdict.problem or None,
                "attempts": verdict.attempts,
            }
            for case, verdict in zip(cases, verdicts, strict=True)
        ],
        "warnings": list(_warnings(sheets, verdicts)),
    }


def _answers(
    backend: Backend,
    sheets: Sequence[Sheet],
    inventory: Inventory,
    personas: Personas,
    plan: JudgePlan,
    progress: Progress,
) -> list[Case]:
    """Every question answered under every condition for every subject; plain only once."""
    plain = Setting()
    wanted: list[tuple[int, str, Question, Setting]] = []
    for name in plan.conditions:
        own = settings(CONDITIONS[name], sheets, inventory, personas)
        for at in range(len(sheets)):
            setting = plain if name == PLAIN else own[at]
            wanted += [(at, name, question, setting) for question in QUESTIONS]
    place: dict[tuple[int, str], int] = {}
    speeches: list[Speech] = []
    for _, _, question, setting in wanted:
        key = (id(setting), question.text)
        if key not in place:
            place[key] = len(speeches)
            speeches.append(Speech(setting, question.text))
    with progress("answers", len(speeches)) as tick:
        said = backend.speak(speeches, plan.max_tokens, tick)
    return [
        Case(at, name, question, said[place[id(setting), question.text]])
        for at, name, question, setting in wanted
    ]


def _figures(
    cases: Sequence[Case], verdicts: Sequence[Verdict], subjects: int, plan: JudgePlan
) -> dict[str, Any]:
    bootstrap = Bootstrap.draw(subjects, plan.seed)
    measured: dict[str, dict[str, Measured]] = {}
    for name in plan.conditions:
        pairs = [
            (case, verdict)
            for case, verdict in zip(cases, verdicts, strict=True)
            if case.condition == name
        ]
        values = _means(pairs, subjects)
        traits = {
            trait: _means([one for one in pairs if one[0].question.trait == trait], subjects)
            for trait in TRAITS
        }
        measured[name] = {"rating": Measured(values, bootstrap.mean(values), traits=traits)}
    return {
        name: {
            "description": CONDITIONS[name].description,
            "measures": {key: measured_json(one, bootstrap) for key, one in measured[name].items()},
            "against_plain": differences(measured[name], measured.get(PLAIN, {}), bootstrap),
            "against_palign": differences(measured[name], measured.get(PALIGN, {}), bootstrap),
            "ratings": _counts(
                verdict
                for case, verdict in zip(cases, verdicts, strict=True)
                if case.condition == name
            ),
        }
        for name in plan.conditions
    }


def _means(pairs: Sequence[tuple[Case, Verdict]], subjects: int) -> Any:
    """Mean rating per subject over what was rated: float64 [S], NaN where nothing was."""
    found = np.full(subjects, np.nan)
    for at in range(subjects):
        ratings = [
            verdict.rating
            for case, verdict in pairs
            if case.subject == at and verdict.rating is not None
        ]
        if ratings:
            found[at] = np.mean(ratings)
    return found


def _counts(verdicts: Iterator[Verdict]) -> dict[str, int]:
    seen = list(verdicts)
    problems = Counter(verdict.problem for verdict in seen)
    return {
        "asked": len(seen),
        "rated": problems[""],
        "unparsable": problems["unparsable"],
        "failed": problems["failed"],
        "asked_again": sum(verdict.attempts > 1 for verdict in seen),
    }


def _warnings(sheets: Sequence[Sheet], verdicts: Sequence[Verdict]) -> Iterator[str]:
    missing = Counter(verdict.problem for verdict in verdicts if verdict.problem)
    if missing:
        yield (
            f"{sum(missing.values())} of {len(verdicts)} answers have no rating "
            f"({', '.join(f'{count} {name}' for name, count in sorted(missing.items()))}); means are "
            "over the others"
        )
    seen = sum(sheet.seen for sheet in sheets)
    if seen:
        yield (
            f"NOT HELD OUT: {seen} of {len(sheets)} subjects are described to the judge by answers "
            "that their persona or prompt was made from"
        )
