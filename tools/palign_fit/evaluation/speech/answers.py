"""Questions about situations, answered and read: recognition, what more strength adds, and voice, the two things that a
reader sees at once: that a machine speaks, and that it goes in circles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from palign_fit.evaluation.conditions import CONDITIONS, PLAIN
from palign_fit.evaluation.intervals import Estimate, as_json, known_number
from palign_fit.evaluation.speech.asking import Asker
from palign_fit.evaluation.speech.plan import PROMPT, Case, People, SpeechPlan, cases
from palign_fit.evaluation.speech.reader import Readings
from palign_fit.evaluation.speech.recognition import Recognition, dose_response, profiles
from palign_fit.evaluation.speech.script import Situation, situations
from vllm_palign.directions.numbers import Reals

_MACHINE = re.compile(
    r"""
    \bas\ an?\ (?:\w+\ ){0,2}(?:ai|a\.i\.|artificial\ intelligence|chat\s?bot|bot|(?:large\ )?language\ model
        |(?:virtual|digital|ai)\ assistant|(?:computer|machine|program|software)\b(?!\ (?:\w+ist|\w+[eo]r|student|science|learning|geek|nerd)\b))
    | \b(?:i\ am|i'm|i’m|me,|being|i\ was\ created\ as)\ (?:just\ |only\ |simply\ |merely\ )?an?\ (?:\w+[\ -]){0,3}?
        (?:ai\b|artificial\ intelligence|chat\s?bot|bot\b|language\ model|virtual\ assistant|digital\ assistant
        |(?:computer|machine)\ program)
    | \b(?:i\ am|i'm|i’m)\ (?:just\ |only\ |simply\ |merely\ )?a\ (?:\w+\ )?(?:computer|machine|robot|software)\b(?!\ (?:\w+ist|\w+[eo]r|student|science|learning|geek|nerd)\b)
    | \blanguage\ model\b | \bAI\ (?:assistant|model|language) | \b(?:trained|developed|created)\ by\ (?:openai|alibaba|
        anthropic|google|hugging\s?face|meta\ ai)
    | \bi\ (?:do\ not|don't|don’t|can't|can’t|cannot|can\ not)\ (?:\w+\ ){0,2}?(?:have|possess|experience|feel)\ (?:any\ |real\ |
        human\ |the\ ability\ to\ have\ |a\ |an\ )*(?:feelings?\b|emotions?\b|consciousness|body\b|human\ emotions?|subjective
        |(?:personal|physical)\ (?:\w+\ )?(?:feelings?|emotions?|experiences?|opinions?|preferences?|beliefs?|thoughts?|desires?|needs
            |interests?|memories|identity|history|life|body|form|presence|existence|sensations?|characteristics|capabilities)\b)
    | \bi\ (?:do\ not|don't|don’t)\ have\ (?:\w+\ ){0,2}(?:feelings|emotions|experiences|preferences|opinions)\b
    | \bals\ (?:eine?\ )?(?:\w+\ ){0,2}?(?:ki\b|k\.i\.|künstliche\ intelligenz|sprachmodell|ki-\w+|chatbot|
        (?:virtueller|digitaler)\ assistent|computerprogramm)
    | \bich\ bin\ (?:nur\ |lediglich\ |bloß\ )?(?:ein|eine)\ (?:\w+\ ){0,2}?(?:ki\b|künstliche\ intelligenz|
        sprachmodell|ki-\w+|chatbot|computer\w*|maschine|programm|roboter|(?:virtueller|digitaler)\ assistent)
    | \b(?:sprachmodell)\b
    | \bich\ habe\ keine\ (?:\w+\ und\ )?(?:persönlichen|eigenen|echten|menschlichen|gefühle|emotionen)
    """,
    re.IGNORECASE | re.VERBOSE,
)

MAX_TOKENS = 60
"""Of an answer: two or three sentences."""


def machine(said: str) -> bool:
    """Whether the answer says that no person speaks, in English or German."""
    return _MACHINE.search(" ".join(said.split())) is not None


def repeated(said: str) -> float:
    """Share of the answer's runs of four words that occurred in it before; 0 of an answer without any."""
    words = re.findall(r"\w+", said.lower())
    runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def shares(answers: Sequence[Sequence[str]]) -> tuple[Reals, Reals]:
    """Of each person's answers, how many are a machine's, and the mean share of repeated runs: float64 [S] each."""
    return (
        np.array([np.mean([machine(one) for one in said]) for said in answers]),
        np.array([np.mean([repeated(one) for one in said]) for said in answers]),
    )


def measure_answers(
    asker: Asker,
    readings: Readings,
    people: People,
    conditions: Sequence[str],
    plan: SpeechPlan,
) -> tuple[dict[str, Any], dict[Case, dict[str, Recognition]]]:
    """Questions about situations, answered under every case, and read: JSON-ready, and by case and reader."""
    asked = situations(plan.part, plan.each)
    wanted = list(cases(conditions, plan.strengths, plan.systems))
    said = {case: _answers(asker, people, case, asked) for case in wanted}
    figures: dict[Case, dict[str, Recognition]] = {case: {} for case in wanted}
    read: dict[Case, dict[str, Reals]] = {case: {} for case in wanted}
    for reader in readings.readers:
        for case in wanted:
            pairs = [
                [(one.question, text) for one, text in zip(asked, own, strict=True)]
                for own in said[case]
            ]
            read[case][reader.name] = readings.read(reader, pairs, case.label)
    found: dict[Case, dict[str, Reals]] = {}
    for case in wanted:
        plain = read[Case(PLAIN, None, case.system)]
        found[case] = {
            name: np.broadcast_to(profiles(own, plain[name][0]), people.scores.shape)
            for name, own in read[case].items()
        }
        figures[case] = {
            name: Recognition.of(own, people.scores, people.items, people.bootstrap)
            for name, own in found[case].items()
        }
    report = {
        "questions": {"part": plan.part, "asked": len(asked), "max_tokens": MAX_TOKENS},
        "readers": [reader.name for reader in readings.readers],
        "cases": [_case(case, said, figures, found[case], people) for case in wanted],
        "dose_response": _doses(conditions, plan, found, people),
        "said": [
            {
                "subject": None if case.condition == PLAIN else people.name(place),
                **case.as_json(),
                "trait": one.trait,
                "question": one.question,
                "answer": text,
            }
            for case in wanted
            for place, own in enumerate(said[case])
            for one, text in zip(asked, own, strict=True)
        ],
    }
    return report, figures


def _answers(
    asker: Asker, people: People, case: Case, asked: Sequence[Situation]
) -> list[list[str]]:
    """Of every person; of plain once."""
    return asker.answers(
        people.settings(case), [one.question for one in asked], MAX_TOKENS, case.label
    )


def _case(
    case: Case,
    said: dict[Case, list[list[str]]],
    figures: dict[Case, dict[str, Recognition]],
    found: dict[str, Reals],
    people: People,
) -> dict[str, Any]:
    """One row of the report."""
    own = _voice(said[case], people)
    plain = _voice(said[Case(PLAIN, None, case.system)], people)
    prompt = figures.get(Case(PROMPT, None, case.system))
    return {
        **case.as_json(),
        "voice": as_json(own),
        "voice_against_plain": as_json({name: own[name].minus(plain[name]) for name in own}),
        "readers": {
            name: {
                **as_json(one.figures),
                "traits": as_json(one.traits),
                "against_prompt": as_json(
                    {
                        key: figure.minus(prompt[name].figures[key])
                        for key, figure in one.figures.items()
                    }
                )
                if prompt and case.condition not in (PLAIN, PROMPT)
                else None,
                "profiles": [[known_number(value) for value in line] for line in found[name]],
            }
            for name, one in figures[case].items()
        },
    }


def _voice(said: list[list[str]], people: People) -> dict[str, Estimate]:
    count = len(people.sheets)
    machine, repeated = (np.broadcast_to(one, (count,)) for one in shares(said))
    words = np.array([np.mean([len(one.split()) for one in own]) for own in said])
    return {
        "machine": people.bootstrap.mean(machine),
        "repeated": people.bootstrap.mean(repeated),
        "words": people.bootstrap.mean(np.broadcast_to(words, (count,))),
    }


def _doses(
    conditions: Sequence[str],
    plan: SpeechPlan,
    found: dict[Case, dict[str, Reals]],
    people: People,
) -> list[dict[str, Any]]:
    """Of every condition that steers, over its strengths and 0, which is plain or the prompt beside it; three at
    least."""
    rows = []
    steering = [name for name in conditions if CONDITIONS[name].method]
    for name, system in product(steering, plan.systems):
        base = Case(PROMPT if CONDITIONS[name].prompt else PLAIN, None, system)
        doses = {0.0: base} if base in found else {}
        doses |= {dose: Case(name, dose, system) for dose in plan.strengths}
        if len(doses) < 3:
            continue
        given = sorted(doses)
        for reader in found[doses[given[-1]]]:
            by_dose = [found[doses[dose]][reader] for dose in given]
            rho = dose_response(given, by_dose, people.scores)
            rows.append(
                {
                    "condition": name,
                    "system": system or None,
                    "reader": reader,
                    "strengths": given,
                    "rho": people.bootstrap.mean(rho).as_json(),
                }
            )
    return rows
