"""From people and personas to the part of the report about what the model says."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from palign_fit.errors import InputError
from palign_fit.evaluation.conditions import Personas
from palign_fit.evaluation.huggingface import HuggingFaceBackend
from palign_fit.evaluation.speech.answers import measure_answers
from palign_fit.evaluation.speech.asking import Asker
from palign_fit.evaluation.speech.damage import damage_json, measure_damage
from palign_fit.evaluation.speech.fading import measure_fading
from palign_fit.evaluation.speech.frontier import at_equal_damage
from palign_fit.evaluation.speech.people import People
from palign_fit.evaluation.speech.plan import SpeechPlan
from palign_fit.evaluation.speech.reader import Reader, WordReader
from palign_fit.evaluation.speech.readings import Readings
from palign_fit.evaluation.split import Sheet
from palign_fit.evaluation.tasks import Backend
from palign_fit.model.cache import Cache
from palign_fit.model.model import OpenedModel
from palign_fit.progress import Progress
from vllm_palign.directions.inventory import Inventory


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
