"""From people and personas to the part of the report about what the model says, recognition against damage with it:
what a persona gives where it costs as much as the prompt does."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from palign_fit.errors import InputError
from palign_fit.evaluation.conditions import CONDITIONS, Personas
from palign_fit.evaluation.huggingface import HuggingFaceBackend
from palign_fit.evaluation.intervals import Estimate, known_number
from palign_fit.evaluation.speech.answers import measure_answers
from palign_fit.evaluation.speech.asking import Asker
from palign_fit.evaluation.speech.damage import damage_json, measure_damage
from palign_fit.evaluation.speech.fading import measure_fading
from palign_fit.evaluation.speech.plan import NONE, PROMPT, Case, People, SpeechPlan
from palign_fit.evaluation.speech.reader import Reader, Readings, WordReader
from palign_fit.evaluation.speech.recognition import Recognition
from palign_fit.evaluation.split import Sheet
from palign_fit.evaluation.tasks import Backend
from palign_fit.model.cache import Cache
from palign_fit.model.model import OpenedModel
from palign_fit.progress import Progress
from vllm_palign.directions.inventory import Inventory


def at_equal_damage(
    found: Mapping[Case, Mapping[str, Recognition]],
    damage: Mapping[Case, Mapping[str, Mapping[str, Estimate]]],
) -> list[dict[str, Any]]:
    """r of every condition that only steers, less the prompt's, at the prompt's KL: between the strengths measured, or
    at the one of most KL where all cost less."""
    prompt = damage.get(Case(PROMPT, None, NONE))
    if prompt is None:
        return []
    limit = prompt["kl"]["all"].mean
    if not np.isfinite(limit):
        return []
    steering = dict.fromkeys(
        case.condition
        for case in found
        if CONDITIONS[case.condition].method and not CONDITIONS[case.condition].prompt
    )
    systems = dict.fromkeys(case.system for case in found)
    rows = []
    for name, system in product(steering, systems):
        doses = [
            (damage[Case(name, case.strength, NONE)]["kl"]["all"].mean, one)
            for case, one in found.items()
            if case.condition == name and case.system == system and (case.strength or 0) > 0
        ]
        for reader, of_prompt in found[Case(PROMPT, None, system)].items() if doses else ():
            kl, r = _between([(cost, one[reader].r) for cost, one in doses], limit)
            rows.append(
                {
                    "condition": name,
                    "system": system or None,
                    "reader": reader,
                    "kl": known_number(kl),
                    "prompt_kl": known_number(limit),
                    "r": r.as_json(),
                    "r_minus_prompt": r.minus(of_prompt.r).as_json(),
                }
            )
    return rows


def _between(points: list[tuple[float, Estimate]], limit: float) -> tuple[float, Estimate]:
    """KL and r at ``limit``. KL grows with the square of the strength, so that r is drawn out over its root; without
    strength there is no KL and no recognition."""
    first = points[0][1]
    none = (0.0, Estimate(0.0, np.zeros_like(first.draws), first.n))
    ordered = sorted([none, *points], key=lambda point: point[0])
    if limit >= ordered[-1][0]:
        return ordered[-1]
    above = next(place for place, (cost, _) in enumerate(ordered) if cost > limit)
    (low, before), (high, after) = ordered[above - 1], ordered[above]
    share = (limit**0.5 - low**0.5) / (high**0.5 - low**0.5)
    mixed = [
        (1 - share) * one + share * other
        for one, other in ((before.mean, after.mean), (before.draws, after.draws))
    ]
    return limit, Estimate(float(mixed[0]), np.asarray(mixed[1]), min(before.n, after.n))


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
    server's. Raises InputError without a reader."""
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
        report["answers"], found = measure_answers(asker, readings, people, conditions, plan)
    if isinstance(backend, HuggingFaceBackend) and "damage" in measures:
        damage = measure_damage(asker, backend, people, conditions, plan)
        report["damage"] = damage_json(damage)
        if "answers" in measures:
            report["at_equal_damage"] = at_equal_damage(found, damage)
    if "fading" in measures:
        report["fading"] = measure_fading(asker, readings, people, conditions, plan)
    return report
