"""Answers to personas: the top of the fitting half."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Protocol

import numpy as np

from palign_fit.errors import InputError
from palign_fit.inputs.answers import Refusal, Subject
from palign_fit.methods.settings import METHODS, Settings, check_heads, check_subject, naming
from palign_fit.model.cache import ModelCache
from palign_fit.model.model import OpenedModel
from palign_fit.progress import Progress, no_progress
from vllm_palign.directions import Directions
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask
from vllm_palign.persona import Persona


class Fitter(Protocol):
    """What fits: everything that no subject changes is prepared."""

    def fit(self, subject: Subject) -> Persona:
        """The persona of ``subject``, whom no other changes. Raises InputError for answers that cannot be
        fitted."""


class DirectionsFitter:
    """Fits by a directions file alone, without the model. ``alpha`` None finds it."""

    def __init__(self, directions: Directions, alpha: float | None = None) -> None:
        self.directions, self.alpha = directions, alpha

    def fit(self, subject: Subject) -> Persona:
        """As ``Fitter.fit``; figures are first-order estimates."""
        directions = self.directions
        with naming(subject):
            found = directions.fit(subject.id, subject.agreement, self.alpha)
        return found.persona(directions.model, directions.inventory, listed=True)


class Method(Protocol):
    """Prepares a fitter. ``used`` bool [N]: items with an answer by anybody; the others do not exist for
    the fit. ``kept`` has what was computed of the model before; None keeps nothing.
    ``progress`` hears of every stage. Raises FitError for a model that cannot be fitted."""

    def __call__(
        self,
        model: OpenedModel,
        inventory: Inventory,
        used: Mask,
        settings: Settings,
        kept: ModelCache | None = None,
        progress: Progress = no_progress,
    ) -> Fitter: ...


def open_fitter(
    model: OpenedModel,
    inventory: Inventory,
    used: Mask,
    settings: Settings,
    kept: ModelCache | None = None,
    progress: Progress = no_progress,
) -> Fitter:
    """The fitter of ``settings.method``, everything shared by subjects computed; see ``Method``.

    Raises InputError for settings the model cannot follow, FitError for a model that cannot be fitted.
    """
    check_heads(settings.heads, model)
    module, name = METHODS[settings.method].split(":")
    method: Method = getattr(import_module(module), name)
    return method(model, inventory, used, settings, kept, progress)


def fit_or_refuse(fitter: Fitter, subject: Subject) -> Persona | Refusal:
    """The persona of ``subject``, or why there is none."""
    try:
        return fitter.fit(subject)
    except InputError as error:
        return Refusal(subject.id, str(error))


def fit_personas(
    model: OpenedModel,
    inventory: Inventory,
    subjects: Sequence[Subject],
    settings: Settings,
    kept: ModelCache | None = None,
    progress: Progress = no_progress,
) -> Iterator[Persona]:
    """One persona a subject, in order; what the model is needed for is computed once for all.

    Raises InputError for settings or a subject that cannot be fitted.
    """
    for subject in subjects:
        check_subject(subject)
    used = np.any([np.isfinite(subject.agreement) for subject in subjects], axis=0)
    fitter = open_fitter(model, inventory, used, settings, kept, progress)
    for subject in subjects:
        yield fitter.fit(subject)
