"""From people and personas to the part of the report about what the model says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from typing import Any

import numpy as np

from palign_fit.errors import InputError
from palign_fit.evaluation.conditions import CONDITIONS, PLAIN, Personas
from palign_fit.evaluation.intervals import known_number
from palign_fit.evaluation.speech.asking import Asker
from palign_fit.evaluation.speech.kept import as_entry, kept, of_entry
from palign_fit.evaluation.speech.plan import Case, SpeechPlan, cases
from palign_fit.evaluation.speech.reader import Pair, Reader, WordReader
from palign_fit.evaluation.speech.recognition import Recognition, dose_response, profiles
from palign_fit.evaluation.speech.sampled import Sampled, as_json, mean
from palign_fit.evaluation.speech.script import Situation, situations
from palign_fit.evaluation.speech.voice import shares
from palign_fit.evaluation.split import Sheet
from palign_fit.evaluation.tasks import Backend
from palign_fit.model.cache import Arrays, Cache
from palign_fit.model.model import OpenedModel
from palign_fit.progress import Progress, Tick
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Reals

MAX_TOKENS = 60
"""Of an answer: two or three sentences."""

PROMPT = "personality-prompt"
"""What personas are compared with."""


class Readings:
    """What readers make of answers; kept in ``cache`` by person."""

    def __init__(self, readers: Sequence[Reader], cache: Cache, progress: Progress) -> None:
        self.readers, self.cache, self.progress = readers, cache, progress

    def read(self, reader: Reader, said: Sequence[Sequence[Pair]], name: str) -> Reals:
        """Of S people's Q answers each: float64 [S, Q, 5]."""

        def compute(places: list[int], tick: Tick) -> list[Arrays]:
            pairs = list(dict.fromkeys(pair for place in places for pair in said[place]))
            scores = dict(zip(pairs, reader.read(pairs, tick).tolist(), strict=True))
            tick(sum(len(said[place]) for place in places) - len(pairs), free=True)
            return [as_entry([_given(scores[pair]) for pair in said[place]]) for place in places]

        keys = [{"reader": reader.identity, "said": [list(pair) for pair in own]} for own in said]
        sizes = [len(own) for own in said]
        found = kept(
            self.cache, keys, sizes, compute, self.progress, f"{name}, read by {reader.name}"
        )
        return np.array([of_entry(entry) for entry in found], dtype=np.float64)


def measure_speech(
    backend: Backend,
    model: OpenedModel | None,
    sheets: Sequence[Sheet],
    inventory: Inventory,
    personas: Personas,
    measures: Collection[str],
    *,
    conditions: Sequence[str],
    plan: SpeechPlan,
    readers: Sequence[Reader],
    seed: int,
    cache: Cache,
    progress: Progress,
) -> dict[str, Any]:
    """What ``measures`` (of readings.SPOKEN) ask for, JSON-ready. ``model`` is the one in this process, None for a
    server's. Raises InputError where a server is asked for what it cannot tell, or without a reader."""
    if not measures:
        return {}
    people = People.of(sheets, inventory, personas, seed)
    asker = Asker(backend, model, cache, progress)
    if not readers and model is not None:
        readers = [WordReader(model, cache)]
    if not readers and set(measures) & {"answers", "fading"}:
        raise InputError(
            "--reader: is missing; wanted a model or an endpoint that reads what is said"
        )
    readings = Readings(readers, cache, progress)
    report: dict[str, Any] = {}
    if "answers" in measures:
        report["answers"] = measure_answers(asker, readings, people, conditions, plan)
    return report


def measure_answers(
    asker: Asker,
    readings: Readings,
    people: People,
    conditions: Sequence[str],
    plan: SpeechPlan,
) -> dict[str, Any]:
    """Questions about situations, answered under every case, and read."""
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
            name: Recognition.of(own, people.scores, people.bootstrap)
            for name, own in found[case].items()
        }
    return {
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


def _voice(said: list[list[str]], people: People) -> dict[str, Sampled]:
    count = len(people.sheets)
    machine, repeated = (np.broadcast_to(one, (count,)) for one in shares(said))
    words = np.array([np.mean([len(one.split()) for one in own]) for own in said])
    return {
        "machine": mean(machine, people.bootstrap),
        "repeated": mean(repeated, people.bootstrap),
        "words": mean(np.broadcast_to(words, (count,)), people.bootstrap),
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
                    "rho": mean(rho, people.bootstrap).as_json(),
                }
            )
    return rows


def _given(scores: Sequence[float]) -> list[float | None]:
    """JSON has no NaN."""
    return [one if np.isfinite(one) else None for one in scores]
