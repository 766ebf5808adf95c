"""Whether a person is still there after fifty turns: recognition along scripted conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palign_fit.evaluation.intervals import UNKNOWN, as_json
from palign_fit.evaluation.speech.asking import Asker
from palign_fit.evaluation.speech.plan import Case, People, SpeechPlan, cases
from palign_fit.evaluation.speech.reader import Readings
from palign_fit.evaluation.speech.recognition import Recognition, mean_known
from palign_fit.evaluation.speech.script import scripts
from vllm_palign.directions.numbers import Reals
from vllm_palign.directions.traits import TRAITS

ANSWER_TOKENS = 40
"""Of each turn's answer."""

READ_AT = (2, 10, 20, 30, 40, 50)
"""Turns at which a reader looks, at each one's answer and the one before."""


def measure_fading(
    asker: Asker,
    readings: Readings,
    people: People,
    conditions: Sequence[str],
    plan: SpeechPlan,
) -> dict[str, Any]:
    """Per case the recognition at each turn, JSON-ready. Under the last of the plan's system prompts; whatever was
    answered before stays in the conversation."""
    asked = {name: said[: plan.turns] for name, said in scripts().items()}
    wanted = list(cases(conditions, plan.strengths, plan.systems[-1:]))
    said = {
        case: asker.conversations(
            people.settings(case), list(asked.values()), ANSWER_TOKENS, f"{case.label}: turns"
        )
        for case in wanted
    }
    turns = [turn for turn in READ_AT if turn <= plan.turns]
    return {
        "scripts": {name: len(lines) for name, lines in asked.items()},
        "max_tokens": ANSWER_TOKENS,
        "turns": turns,
        "cases": _cases(wanted, said, list(asked.values()), turns, readings, people),
    }


def _cases(
    wanted: Sequence[Case],
    said: dict[Case, list[list[list[str]]]],
    asked: Sequence[Sequence[str]],
    turns: Sequence[int],
    readings: Readings,
    people: People,
) -> list[dict[str, Any]]:
    """Of every case but plain, from which all are measured."""
    read: dict[Case, dict[str, Reals]] = {case: {} for case in wanted}
    for reader in readings.readers:
        for case in wanted:
            pairs = [
                [
                    (script[turn - back], answers[turn - back])
                    for turn in turns
                    for script, answers in zip(asked, own, strict=True)
                    for back in (2, 1)
                ]
                for own in said[case]
            ]
            found = readings.read(reader, pairs, f"{case.label}: turns")
            read[case][reader.name] = found.reshape(len(found), len(turns), -1, len(TRAITS))
    plain, *others = wanted
    return [
        {
            **case.as_json(),
            "readers": {
                name: _curve(found - read[plain][name], turns, people)
                for name, found in read[case].items()
            },
        }
        for case in others
    ]


def _curve(moved: Reals, turns: Sequence[int], people: People) -> dict[str, Any]:
    """``moved`` [S, turns, answers, 5] from plain's answers at the same turns."""
    profiles = mean_known(moved, 2)
    found = [
        Recognition.of(profiles[:, place], people.scores, people.items, people.bootstrap)
        for place in range(len(turns))
    ]
    return {
        "turns": [
            {"turn": turn, **as_json(one.figures), "traits": as_json(one.traits)}
            for turn, one in zip(turns, found, strict=True)
        ],
        "r_last_to_first": (found[-1].r.over(found[0].r) if len(found) > 1 else UNKNOWN).as_json(),
    }
