"""Open-ended evaluation: the model answers questions, a judge rates how well they fit the person."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from palign_fit.errors import FitError, InputError
from palign_fit.evaluation.conditions import (
    CONDITIONS,
    PALIGN,
    PLAIN,
    Personas,
    check_prompts,
    settings,
)
from palign_fit.evaluation.evaluating import head
from palign_fit.evaluation.figures import compared
from palign_fit.evaluation.intervals import Bootstrap, Measured
from palign_fit.evaluation.judge import (
    FAILED,
    QUESTIONS,
    UNPARSABLE,
    Question,
    Rater,
    Verdict,
    judge_messages,
)
from palign_fit.evaluation.split import Sheet, trait_means
from palign_fit.evaluation.tasks import Backend, Setting, Speech
from palign_fit.progress import Progress, no_progress
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Reals
from vllm_palign.directions.traits import TRAITS

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
            f"condition {name!r} is unknown" for name in self.conditions if name not in _JUDGED
        ]
        if not self.conditions:
            problems.append("no condition")
        if self.max_tokens < 1:
            problems.append(f"max-tokens is {self.max_tokens}, wanted at least 1")
        if not math.isfinite(self.strength):
            problems.append(f"strength is {self.strength}, wanted a finite number")
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

    Raises InputError where a prompt has nothing to be written of, FitError where the judge gave no rating at all.
    """
    check_prompts(plan.conditions, sheets)
    cases = _answers(backend, sheets, inventory, personas, plan, progress)
    persons = [trait_means(sheet, inventory, sheet.held_out) for sheet in sheets]
    # Shuffled, so that neither a condition nor a person comes in a row; the judge sees no names.
    order = np.random.default_rng(plan.seed).permutation(len(cases))
    shown = [
        judge_messages(persons[case.subject], case.question.text, case.answer)
        for case in (cases[place] for place in order)
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
        own = [
            replace(one, scope="answers")  # as a server does by default
            for one in settings(CONDITIONS[name], sheets, inventory, personas)
        ]
        for subject in range(len(sheets)):
            setting = plain if name == PLAIN else own[subject]
            wanted += [(subject, name, question, setting) for question in QUESTIONS]
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
        Case(subject, name, question, said[place[id(setting), question.text]])
        for subject, name, question, setting in wanted
    ]


def _figures(
    cases: Sequence[Case], verdicts: Sequence[Verdict], subjects: int, plan: JudgePlan
) -> dict[str, Any]:
    """The report's ``conditions``."""
    bootstrap = Bootstrap.draw(subjects, plan.seed)
    rated = {
        name: [pair for pair in zip(cases, verdicts, strict=True) if pair[0].condition == name]
        for name in plan.conditions
    }
    measured = {}
    for name, pairs in rated.items():
        traits = {
            trait: _means([pair for pair in pairs if pair[0].question.trait == trait], subjects)
            for trait in TRAITS
        }
        values = _means(pairs, subjects)
        measured[name] = {"rating": Measured(values, bootstrap.mean(values), traits=traits)}
    return {
        name: {**figures, "ratings": _counts([verdict for _, verdict in rated[name]])}
        for name, figures in compared(measured, bootstrap).items()
    }


def _means(pairs: Sequence[tuple[Case, Verdict]], subjects: int) -> Reals:
    """Mean rating per subject over what was rated: float64 [S], NaN where nothing was."""
    ratings: list[list[int]] = [[] for _ in range(subjects)]
    for case, verdict in pairs:
        if verdict.rating is not None:
            ratings[case.subject].append(verdict.rating)
    return np.array([np.mean(given) if given else np.nan for given in ratings])


def _counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    problems = Counter(verdict.problem for verdict in verdicts)
    return {
        "asked": len(verdicts),
        "rated": problems[""],
        "unparsable": problems[UNPARSABLE],
        "failed": problems[FAILED],
        "asked_again": sum(verdict.attempts > 1 for verdict in verdicts),
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
