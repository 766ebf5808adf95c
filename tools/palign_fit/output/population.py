"""One subject or hundreds of thousands: one by one through a fitter, results to a folder or to shards.

A run can be stopped at any moment and started again with the same command. Nothing beside the results
remembers how far it came: every persona records in ``fit["inputs"]`` what it was made from, and one that
is there with the same inputs is kept. Any other is fitted again and replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from hashlib import sha256
from typing import Any, Protocol

from palign_fit.errors import InputError
from palign_fit.fit import Fitter
from palign_fit.inputs.answers import Answers, Refusal, Subject
from palign_fit.model.cache import key_digest
from vllm_palign.persona import Persona


@dataclass(frozen=True)
class Fitted:
    """What is said about a persona that was written, or kept from an earlier run."""

    id: str
    path: str
    digest: str
    alpha: float
    alignment: float
    rank: float
    effect: float
    perplexity: float
    perplexity_plain: float
    weak: bool
    warnings: list[str]
    kept: bool = False

    @classmethod
    def of(cls, persona: Persona, subject: str, path: str, *, kept: bool) -> Fitted:
        measured = (
            "alignment", "rank", "effect", "perplexity", "perplexity_plain", "weak", "warnings"
        )  # fmt: skip
        return cls(
            id=subject,
            path=path,
            digest=persona.digest,
            alpha=persona.alpha,
            kept=kept,
            **{name: persona.fit[name] for name in measured},
        )


Outcome = Fitted | Refusal


@dataclass(frozen=True)
class Job:
    """What a run is to make: ``run`` is everything a persona depends on besides its answers.

    ``name`` replaces the subject's id as the persona's name; ``refused`` are subjects not to be tried.
    """

    run: Mapping[str, Any]
    name: str | None
    description: str
    refused: Mapping[str, Refusal]

    def inputs(self, subject: Subject) -> str:
        """sha256 in hex of everything the persona of ``subject`` is made from."""
        return sha256(
            f"{self._run} {subject.id} {self.name or ''}\n{self.description}\n".encode()
            + subject.agreement.tobytes()
        ).hexdigest()

    def label(self, persona: Persona, subject: Subject) -> Persona:
        """``persona`` as it is written: under its name and with its inputs."""
        return replace(
            persona,
            name=self.name or persona.name,
            description=self.description,
            fit={**persona.fit, "inputs": self.inputs(subject)},
            digest="",
        )

    @cached_property
    def _run(self) -> str:
        return key_digest(self.run)


def run_inputs(made_with: str, *, alpha: float | None, check: bool) -> dict[str, Any]:
    """``Job.run`` of a fit under what ``made_with`` says is shared (``settings.shared_digest``)."""
    return {"made_with": made_with, "alpha": alpha, "check": check}


class Output(Protocol):
    """Where personas go; ``unit`` subjects at a time."""

    unit: int

    def write(self, subjects: Sequence[Subject], work: Work) -> Iterator[Outcome]:
        """Write what is not there yet; one outcome a subject, in order, told when it is written."""

    def close(self) -> None:
        """Nothing more will be written."""


class Work:
    """Fits subjects of a job one by one.

    ``prepare`` gives the fitter; it is called once somebody has to be fitted, so that a run that finds
    everything done costs nothing.
    """

    def __init__(self, prepare: Callable[[], Fitter], job: Job) -> None:
        self.job = job
        self.prepare = cache(prepare)

    def fit(self, subject: Subject) -> Persona | Refusal:
        """The labelled persona, or why there is none."""
        if subject.id in self.job.refused:
            return self.job.refused[subject.id]
        fitter = self.prepare()
        try:
            return self.job.label(fitter.fit(subject), subject)
        except InputError as error:
            return Refusal(subject.id, str(error))


def fit_population(
    answers: Answers, prepare: Callable[[], Fitter], job: Job, output: Output
) -> Iterator[Outcome]:
    """Every subject's outcome, in the order of the answers, written before it is told."""
    work = Work(prepare, job)
    try:
        for at in range(0, len(answers), output.unit):
            yield from output.write(answers[at : at + output.unit], work)
    finally:
        output.close()


def as_line(outcome: Outcome) -> str:
    """One line of JSON: of a persona, or of a subject that was skipped."""
    return json.dumps(asdict(outcome), sort_keys=True)
