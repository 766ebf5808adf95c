"""The report of ``palign-fit evaluate --json``, checked before anything is drawn from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from palign_fit.errors import refuse
from palign_fit.evaluation.evaluating import FORMAT, FORMAT_VERSION
from palign_fit.inputs.files import read_text, strict_json
from palign_fit.reporting.record import text
from vllm_palign.directions.traits import TRAITS

Trait = Literal["O", "C", "E", "A", "N"]
Number = Annotated[FiniteFloat, Field(ge=-1e9, le=1e9)]
Name = Annotated[str, Field(max_length=200)]
Text = Annotated[str, Field(max_length=2000)]
Many = Annotated[list[Number | None], Field(max_length=100_000)]


class _Part(BaseModel):
    """Unknown keys are ignored, as the format says; numbers written as text are not numbers."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class Estimate(_Part):
    """A mean over subjects and its 95 % interval."""

    mean: Number | None
    low: Number | None
    high: Number | None


class Measure(Estimate):
    per_subject: Many = []
    traits: dict[Trait, Estimate] | None = None


class Baseline(_Part):
    """What can be had without a model."""

    description: Text = ""
    measures: Annotated[dict[Name, Measure], Field(max_length=50)]


class Condition(Baseline):
    against_plain: Annotated[dict[Name, Estimate], Field(max_length=50)] = {}
    against_palign: Annotated[dict[Name, Estimate], Field(max_length=50)] = {}
    traits: dict[Trait, Annotated[dict[Name, Many], Field(max_length=20)]] = {}


class Measured(_Part):
    """The persona that the evaluation steered with."""

    digest: Name


class Scores(_Part):
    """Trait scores 1 to 5: of the held-out answers, and of people in general."""

    target: Number | None = None
    usual: Number | None = None


class Subject(_Part):
    id: Name
    held_out_items: int
    seen_in_fitting: bool = False
    persona: Measured | None = None
    traits: dict[Trait, Scores] = {}


class Settings(_Part):
    strength: Number = 1.0


class Evaluation(_Part):
    """The parts of an evaluation that the page shows; ``per_subject`` follows ``subjects``."""

    format: Literal["palign.evaluation"]
    format_version: Literal[1]
    model: Name
    settings: Settings = Settings()
    subjects: Annotated[list[Subject], Field(min_length=1, max_length=100_000)]
    conditions: Annotated[dict[Name, Condition], Field(min_length=1, max_length=20)]
    baselines: Annotated[dict[Name, Baseline], Field(max_length=20)] = {}
    warnings: Annotated[list[Text], Field(max_length=100)] = []

    @model_validator(mode="after")
    def _in_step(self) -> Evaluation:
        """Every list has one value a subject; all have the error or none, in all five traits."""
        parts: dict[str, Baseline] = {**self.baselines, **self.conditions}
        errors = any("error" in part.measures for part in self.conditions.values())
        for name, part in parts.items():
            lists = {key: measure.per_subject for key, measure in part.measures.items()}
            if isinstance(part, Condition):
                for trait, sources in part.traits.items():
                    lists |= {f"traits.{trait}.{key}": values for key, values in sources.items()}
            for key, values in lists.items():
                if len(values) != len(self.subjects):
                    raise ValueError(f"{name}.{key} has {len(values)} values, wanted one a subject")
            error = part.measures.get("error")
            if errors and (error is None or set(error.traits or ()) != set(TRAITS)):
                raise ValueError(f"{name}.error is missing, or lacks a trait")
        return self

    def places(self) -> dict[str, int]:
        """Subject id -> its place in every list."""
        return {subject.id: place for place, subject in enumerate(self.subjects)}

    def as_tables(self) -> dict[str, Any]:
        """What ``palign_fit.evaluation.tables.tables`` takes, of the measures an evaluation has."""
        data = self.model_dump(include={"conditions", "baselines"})
        for part in [*data["conditions"].values(), *data["baselines"].values()]:
            part["measures"].pop("rating", None)  # a judge's, whose counts are not here
        return data


def read_evaluation(path: Path) -> Evaluation:
    """Raises InputError, naming what is not as docs/evaluation.md says."""
    data = strict_json(read_text(path), str(path))
    kind = data.get("format") if isinstance(data, dict) else None
    version = data.get("format_version") if isinstance(data, dict) else None
    if (kind, version) != (FORMAT, FORMAT_VERSION) or isinstance(version, bool):
        raise refuse(
            f"--evaluation {path}",
            [f"format is {kind!r} version {version!r}, wanted {FORMAT!r} version {FORMAT_VERSION}"],
            "Give what palign-fit evaluate --json printed",
        )
    try:
        return Evaluation.model_validate(data)
    except ValidationError as error:
        problems = list(_problems(error))
        raise refuse(
            f"--evaluation {path}", problems, "Give what palign-fit evaluate --json printed"
        ) from None


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in problem["loc"]) or "the whole"
        value = problem["input"]
        got = "" if isinstance(value, (dict, list)) else text(repr(value)[:80])
        yield f"{text(place, 100)}: {problem['msg']}" + (f", got {got}" if got else "")
