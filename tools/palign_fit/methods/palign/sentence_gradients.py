"""Everything the default method needs from the model; nothing here depends on a subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from palign_fit.arrays import Activations, within
from palign_fit.inputs.inventory import Inventory
from palign_fit.methods.palign.sentences import Examples
from palign_fit.model import prompts
from palign_fit.model.cache import Arrays, Cache
from palign_fit.model.gradients import read_gradients
from palign_fit.model.model import OpenedModel, model_dtype

VERSION = 1
"""Raised when what is computed here changes, so that old cache entries are not taken for it."""


@dataclass(frozen=True, eq=False)
class SentenceGradients:
    """``gradients`` float32 [E, L, H, D], see ``gradients``; ``covariance`` float32 [L, H, D, D] of the
    head outputs after each example, within its questionnaire."""

    examples: Examples
    gradients: Activations
    covariance: Activations

    @classmethod
    def read(
        cls,
        model: OpenedModel,
        inventory: Inventory,
        used: npt.NDArray[np.bool_],
        *,
        checkpoint: str = "",
        cache: Cache | None = None,
        tick: Callable[[int], None] = lambda _: None,
    ) -> SentenceGradients:
        """Run the model over every example and the items ``used`` bool [N], or take it from ``cache``.

        ``checkpoint`` is the content digest the cache knows the model by.
        """
        examples = Examples.of(inventory, used)
        prefix = prompts.chat_prefix(model.tokenizer, prompts.OPENINGS[0])
        lines = [prompts.continuation(model.tokenizer, one) for one in examples.sentences]

        def compute() -> Arrays:
            found = read_gradients(model, prefix, lines, tick)
            return {
                "gradients": found.gradients,
                "covariance": _covariance(found.outputs, examples.questionnaires),
            }

        key = {
            "what": f"sentence gradients {VERSION}",
            "checkpoint": checkpoint,
            "dtype": model_dtype(model),
            "device": model.device.type,
            "prefix": prefix,
            "lines": lines,
            "questionnaires": examples.questionnaires.tolist(),
        }
        arrays = (cache or Cache(None)).load_or_compute(key, compute)
        return cls(examples, arrays["gradients"], arrays["covariance"])


def _covariance(outputs: Activations, groups: np.ndarray) -> Activations:
    """Covariance of each head's outputs [N, L, H, D] around their group's mean: [L, H, D, D]."""
    centred = np.concatenate([within(outputs[groups == group]) for group in np.unique(groups)])
    by_head = centred.transpose(1, 2, 3, 0)
    return np.asarray(by_head @ by_head.swapaxes(-1, -2) / len(centred), dtype=np.float32)
