"""Personas for an evaluation that was given none: fitted as ``palign-fit run`` does, from training answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from palign_fit.errors import InputError
from palign_fit.evaluation.split import Sheet
from palign_fit.fit import Fitter, open_fitter
from palign_fit.inputs.answers import Answers, Refusal
from palign_fit.methods.settings import Settings, check_subject, shared_digest
from palign_fit.model.cache import Cache, ModelCache, key_digest
from palign_fit.model.model import OpenedModel
from palign_fit.output.folder import FolderOutput
from palign_fit.output.population import Job, fit_population, run_inputs
from palign_fit.progress import Progress
from vllm_palign.directions.inventory import Inventory
from vllm_palign.persona import Persona, load


@dataclass(frozen=True)
class Fitting:
    """``folder`` is where the personas stay, None without a cache."""

    personas: list[Persona]
    folder: Path | None


def fit_learners(
    model: OpenedModel,
    sheets: Sequence[Sheet],
    inventory: Inventory,
    method: str,
    seed: int,
    cache: Cache,
    progress: Progress,
) -> Fitting:
    """The persona of every sheet, in order.

    They are kept in a folder of the cache: a killed evaluation goes on where it was, and the same one again
    fits nobody. Raises InputError for a subject that cannot be fitted.
    """
    # All share directions: what is held out of one must not come in by another who was left nothing held out.
    clean = [sheet.train for sheet in sheets if not sheet.seen] or [sheet.train for sheet in sheets]
    used = np.any(clean, axis=0)
    learners = Answers(
        [sheet.subject.id for sheet in sheets],
        np.array(
            [np.where(sheet.train & used, sheet.subject.agreement, 0) for sheet in sheets]
        ).astype(np.uint8),
    )
    for learner in learners:
        check_subject(learner)
    most = model.num_layers * model.num_heads
    settings = Settings(method=method, heads=min(Settings.heads, most), seed=seed)
    known = ModelCache.of(model, cache)
    job = Job(
        run=run_inputs(
            shared_digest(model, known.checkpoint, inventory, learners.used, settings),
            alpha=settings.alpha,
            check=settings.check,
        ),
        name=None,
        description="",
        refused={},
    )
    kept = cache.folder / "evaluated" / key_digest(job.run)[:16] if cache.folder else None
    with (
        nullcontext(kept) if kept else TemporaryDirectory() as folder,
        progress(f"fitting {method}", len(learners)) as done,
    ):

        def prepare() -> Fitter:
            return open_fitter(model, inventory, learners.used, settings, known, progress)

        personas = []
        for outcome in fit_population(
            learners, prepare, job, FolderOutput(Path(folder), len(learners))
        ):
            if isinstance(outcome, Refusal):
                raise InputError(outcome.reason)
            personas.append(load(Path(outcome.path)))
            done(1, free=outcome.kept)
    return Fitting(personas, kept)
