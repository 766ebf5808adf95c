"""One persona in an evaluation: its trait scores and its own figures under every condition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from palign_fit.evaluation.conditions import PALIGN, PLAIN
from palign_fit.evaluation.figures import MEASURE_TEXT
from palign_fit.reporting.charts import Radar
from palign_fit.reporting.evaluated import Evaluation
from palign_fit.reporting.sources import Entry
from vllm_palign.directions.traits import TRAITS, trait_name

_OWN = [
    key for key in MEASURE_TEXT if key not in ("positive", "followed", "identification", "rating")
]
"""Measures that a single person has."""


@dataclass(frozen=True)
class TraitRow:
    """Scores 1 to 5; ``plain`` and ``steered`` are the model's, None where not measured."""

    trait: str
    target: float | None
    usual: float | None
    plain: float | None
    steered: float | None


@dataclass(frozen=True)
class Profile:
    """What an evaluation says of one persona. ``figures``: (condition, one value a measure)."""

    held_out_items: int
    seen_in_fitting: bool
    other_file: bool
    traits: tuple[TraitRow, ...]
    radar: Radar | None
    measures: tuple[str, ...]
    figures: tuple[tuple[str, tuple[float | None, ...]], ...]
    alignment: float | None

    @classmethod
    def of(cls, evaluation: Evaluation, place: int, entry: Entry) -> Profile:
        """``place`` of the persona among the evaluation's subjects."""
        subject = evaluation.subjects[place]
        rows = tuple(_traits(evaluation, place))
        measures = tuple(key for key in _OWN if _measured(evaluation, key))
        return cls(
            held_out_items=subject.held_out_items,
            seen_in_fitting=subject.seen_in_fitting,
            other_file=subject.persona is not None and subject.persona.digest != entry.digest,
            traits=rows,
            radar=_radar(rows),
            measures=measures,
            figures=tuple(_figures(evaluation, place, measures)),
            alignment=_value(evaluation, PALIGN, "alignment", place),
        )


def _measured(evaluation: Evaluation, key: str) -> bool:
    return any(
        value is not None
        for condition in evaluation.conditions.values()
        if key in condition.measures
        for value in condition.measures[key].per_subject
    )


def _traits(evaluation: Evaluation, place: int) -> Iterator[TraitRow]:
    subject = evaluation.subjects[place]
    for trait in TRAITS:
        own = subject.traits.get(trait)  # type: ignore[call-overload]
        yield TraitRow(
            trait=trait_name(trait),
            target=own.target if own else None,
            usual=own.usual if own else None,
            plain=_told(evaluation, PLAIN, trait, place),
            steered=_told(evaluation, PALIGN, trait, place),
        )


def _told(evaluation: Evaluation, condition: str, trait: str, place: int) -> float | None:
    """The score that statements tell, 1 to 5."""
    if condition not in evaluation.conditions:
        return None
    scores = evaluation.conditions[condition].traits.get(trait, {})  # type: ignore[call-overload]
    return scores["from_statements"][place] if "from_statements" in scores else None


def _radar(rows: tuple[TraitRow, ...]) -> Radar | None:
    radar = Radar.of(
        [row.trait for row in rows],
        [
            ("plain", [row.plain for row in rows]),
            ("steered", [row.steered for row in rows]),
            ("target", [row.target for row in rows]),
        ],
    )
    return radar if radar.shapes else None


def _figures(
    evaluation: Evaluation, place: int, measures: tuple[str, ...]
) -> Iterator[tuple[str, tuple[float | None, ...]]]:
    for name in evaluation.conditions:
        yield name, tuple(_value(evaluation, name, key, place) for key in measures)
    for name, baseline in evaluation.baselines.items():
        values = []
        for key in measures:
            shared = baseline.measures.get(key)
            values.append(shared.per_subject[place] if shared else None)
        if any(value is not None for value in values):
            yield f"({name})", tuple(values)


def _value(evaluation: Evaluation, condition: str, key: str, place: int) -> float | None:
    figures = evaluation.conditions.get(condition)
    measure = figures.measures.get(key) if figures else None
    return measure.per_subject[place] if measure else None
