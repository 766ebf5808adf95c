"""Answers to personas: the top of the fitting half."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from palign_fit.arrays import Mask
from palign_fit.errors import InputError
from palign_fit.inputs.answers import Refusal, Subject
from palign_fit.inputs.inventory import Inventory
from palign_fit.methods.fitter import Fitter
from palign_fit.methods.palign.fitter import PalignFitter
from palign_fit.methods.pas_reference.fitter import ReferenceFitter
from palign_fit.methods.settings import Settings, check_subject
from palign_fit.model.cache import Cache
from palign_fit.model.model import OpenedModel
from vllm_palign.persona import Persona


def open_fitter(
    model: OpenedModel,
    inventory: Inventory,
    used: Mask,
    settings: Settings,
    *,
    checkpoint: str = "",
    cache: Cache | None = None,
    tick: Callable[[int], None] = lambda _: None,
) -> Fitter:
    """The fitter of ``settings.method``, everything shared by subjects computed.

    ``used`` bool [N]: items with an answer by anybody; the others do not exist for the fit. ``cache``
    is used where ``checkpoint`` (``checkpoint.digest``) says what the model is. ``tick`` hears of
    examples read. Raises InputError for settings the model cannot follow, FitError for a
    model that cannot be fitted.
    """
    most = model.num_layers * model.num_heads
    if settings.heads > most:
        raise InputError(f"--heads {settings.heads}: {model.base_model} has {most} heads in all")
    if settings.method == PalignFitter.name:
        return PalignFitter(
            model, inventory, used, settings, checkpoint=checkpoint, cache=cache, tick=tick
        )
    return ReferenceFitter(model, inventory, settings, tick)


def fit_personas(
    model: OpenedModel,
    inventory: Inventory,
    subjects: Sequence[Subject],
    settings: Settings,
    *,
    tick: Callable[[int], None] = lambda _: None,
) -> Iterator[Persona]:
    """One persona a subject, in order; what the model is needed for is computed once for all.

    Raises InputError for settings or a subject that cannot be fitted.
    """
    for subject in subjects:
        check_subject(subject)
    used = np.any([np.isfinite(subject.agreement) for subject in subjects], axis=0)
    fitter = open_fitter(model, inventory, used, settings, tick=tick)
    for subject in subjects:
        (found,) = fitter.fit_batch([subject])
        if isinstance(found, Refusal):
            raise InputError(found.reason)
        yield found
