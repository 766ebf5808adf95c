"""A population that is fitted in no time, for what is about files and not about fits.

``python -m tests.fit.output.populations OUT SHARD COUNT PAUSE`` fits COUNT subjects into OUT, shards of SHARD
or 0 for single files, PAUSE seconds before each.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from palign_fit.errors import InputError
from palign_fit.inputs.answers import Answers, Subject
from palign_fit.output.folder import FolderOutput
from palign_fit.output.population import Job, Outcome, Output, fit_population
from palign_fit.output.shards import ShardOutput

from vllm_palign.persona import Persona

ITEMS = 8


def answers(count: int, seed: int = 0) -> Answers:
    """``count`` subjects s0, s1 and so on with random answers."""
    table = np.random.default_rng(seed).integers(1, 6, (count, ITEMS)).astype(np.uint8)
    return Answers([f"s{n}" for n in range(count)], table)


class Stub:
    """Makes a persona out of the answers themselves; refuses the ids in ``refused``."""

    def __init__(self, refused: Sequence[str] = (), pause: float = 0.0) -> None:
        self.refused, self.pause = set(refused), pause
        self.fitted: list[str] = []

    def fit(self, subject: Subject) -> Persona:
        time.sleep(self.pause)
        if subject.id in self.refused:
            raise InputError(f"subject {subject.id!r}: no")
        self.fitted.append(subject.id)
        measured = dict.fromkeys(
            ("alignment", "rank", "effect", "perplexity", "perplexity_plain"), 0.5
        )
        return Persona(
            name=subject.id,
            layers=np.zeros(1, np.int32),
            heads=np.zeros(1, np.int32),
            offsets=subject.agreement[None].astype(np.float32),
            alpha=1.0,
            base_model="stub",
            num_layers=1,
            num_heads=1,
            head_dim=ITEMS,
            fit={**measured, "weak": False, "warnings": []},
        )


def fit(
    people: Answers, out: Path, shard: int = 0, fitter: Stub | None = None, run: str = "a"
) -> list[Outcome]:
    """What ``palign-fit run`` does with ``people``, with a stub for the model."""
    output: Output = (
        ShardOutput(out, shard, len(people)) if shard else FolderOutput(out, len(people))
    )
    job = Job(run={"settings": run}, name=None, description="", refused={})
    return list(fit_population(people, lambda: fitter or Stub(), job, output))


if __name__ == "__main__":
    _, where, size, number, wait = sys.argv
    fit(answers(int(number)), Path(where), int(size), Stub(pause=float(wait)))
