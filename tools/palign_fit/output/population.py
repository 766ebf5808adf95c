"""One subject or hundreds of thousands: batches through a fitter, results to a folder or to shards.

A run can be stopped at any moment and started again with the same command. Nothing beside the results
remembers how far it came: every persona records in ``fit["inputs"]`` what it was made from, and one that
is there with the same inputs is kept. Any other is fitted again and replaced.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from palign_fit.errors import InputError
from palign_fit.inputs.answers import Answers, Refusal, Subject
from palign_fit.methods.fitter import Fitter
from palign_fit.model.cache import key_digest
from vllm_palign.persona import Persona

MAX_BATCH = 16
"""Subjects that are fitted before the first of them is written: a checked fit takes seconds each, and a
killed run loses its batch."""

BYTES_PER_NUMBER = 128
"""Memory a subject of a batch takes for each of the L x H x D numbers of a direction, at most."""


@dataclass(frozen=True)
class Fitted:
    """What is said about a persona that was written, or kept from an earlier run."""

    id: str
    path: str
    digest: str
    alpha: float
    alignment: float
    effect: float
    perplexity: float
    perplexity_plain: float
    weak: bool
    warnings: list[str]
    kept: bool = False

    @classmethod
    def of(cls, persona: Persona, subject: str, path: str, *, kept: bool) -> Fitted:
        measured = ("alignment", "effect", "perplexity", "perplexity_plain", "weak", "warnings")
        return cls(
            id=subject,
            path=path,
            digest=persona.digest,
            alpha=persona.alpha,
            kept=kept,
            **{name: persona.fit[name] for name in measured},
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


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


class Output(Protocol):
    """Where personas go; ``unit`` subjects at a time, a batch of the fitter each or several."""

    unit: int

    def write(self, subjects: Sequence[Subject], batches: Batches) -> Iterator[Outcome]:
        """Write what is not there yet; one outcome a subject, in order."""

    def close(self) -> None:
        """Nothing more will be written."""


class Batches:
    """Fits subjects in batches of bounded size.

    ``prepare`` gives the fitter and the size; it is called once somebody has to be fitted, so that a
    run that finds everything done costs nothing.
    """

    def __init__(self, prepare: Callable[[], tuple[Fitter, int]], job: Job) -> None:
        self.job = job
        self.prepare = cache(prepare)

    def fit(self, subjects: Sequence[Subject]) -> Iterator[Persona | Refusal]:
        """Each subject's labelled persona, or why there is none."""
        tried = [one for one in subjects if one.id not in self.job.refused]
        results = self._results(tried)
        for subject in subjects:
            if subject.id in self.job.refused:
                yield self.job.refused[subject.id]
                continue
            result = next(results)
            yield self.job.label(result, subject) if isinstance(result, Persona) else result

    def _results(self, subjects: Sequence[Subject]) -> Iterator[Persona | Refusal]:
        at = 0
        while at < len(subjects):
            fitter, size = self.prepare()
            yield from fitter.fit_batch(subjects[at : at + size])
            at += size


def fit_population(
    answers: Answers, prepare: Callable[[], tuple[Fitter, int]], job: Job, output: Output
) -> Iterator[Outcome]:
    """Every subject's outcome, in the order of the answers, written before it is told."""
    batches = Batches(prepare, job)
    try:
        for at in range(0, len(answers), output.unit):
            yield from output.write(answers[at : at + output.unit], batches)
    finally:
        output.close()


def batch_size(limit: float | None, used: int, numbers: int) -> int:
    """How many subjects at a time fit into ``limit`` GB of memory of which ``used`` bytes are taken.

    ``numbers`` is L x H x D of the model. Raises InputError where not even one fits.
    """
    if limit is None:
        return MAX_BATCH
    free = limit * 1e9 - used
    if free < numbers * BYTES_PER_NUMBER:
        raise InputError(
            f"--memory {limit:g}: {used / 1e9:.1f} GB are taken once the model is open; wanted at "
            f"least {(used + 8 * numbers * BYTES_PER_NUMBER) / 1e9:.1f}"
        )
    return max(1, min(MAX_BATCH, int(free / (numbers * BYTES_PER_NUMBER))))


def resident_bytes() -> int:
    """Memory this process holds now; where the system does not tell, the most it ever held."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def as_line(outcome: Outcome) -> str:
    """One line of JSON: of a persona, or of a subject that was skipped."""
    row = outcome.as_json() if isinstance(outcome, Fitted) else asdict(outcome)
    return json.dumps(row, sort_keys=True)
