"""A fitter for methods that take their subjects one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from palign_fit.alpha import Yardstick
from palign_fit.answers import Refusal, Subject
from palign_fit.errors import FitError, InputError
from palign_fit.fit import METHODS, Settings, fit_persona
from palign_fit.inventory import Inventory
from palign_fit.model import SubjectModel
from vllm_palign.persona import Persona


class OneByOne:
    """What no subject changes, and ``fit_batch`` on top of it.

    Raises InputError for settings that do not suit the model, FitError for a model that cannot be used.
    """

    def __init__(
        self,
        model: SubjectModel,
        inventory: Inventory,
        settings: Settings,
        tick: Callable[[int], None] = lambda _: None,
    ) -> None:
        most = model.num_layers * model.num_heads
        if settings.heads > most:
            raise InputError(
                f"--heads {settings.heads}: {model.base_model} has {most} heads in all"
            )
        self.settings = settings
        self.method = METHODS[settings.method].prepare(model, inventory, settings.seed, tick)
        self.yardstick = Yardstick.measure(model, inventory)
        if not (
            math.isfinite(self.yardstick.plain_perplexity)
            and np.isfinite(self.yardstick.plain).all()
        ):
            raise FitError(f"{model.base_model}: gives NaN or Inf likelihoods; try --dtype float32")

    def fit_batch(self, subjects: Sequence[Subject]) -> list[Persona | Refusal]:
        found: list[Persona | Refusal] = []
        for subject in subjects:
            try:
                self.method.check(subject)
                found.append(fit_persona(self.yardstick, self.method, subject, self.settings))
            except InputError as error:
                found.append(Refusal(subject.id, str(error)))
        return found
