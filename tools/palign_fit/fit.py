"""Answers to personas: the top of the fitting half."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from palign_fit.inputs.answers import Subject
from palign_fit.methods.settings import METHODS, Settings, check_heads, naming
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
