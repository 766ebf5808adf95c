"""Everything the default method needs from the model; nothing here depends on a subject."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from palign_fit.arrays import Activations, within
from palign_fit.errors import FitError
from palign_fit.inputs.inventory import Inventory
from palign_fit.methods.palign.sentences import Examples
from palign_fit.model import prompts
from palign_fit.model.cache import Arrays, ModelCache
from palign_fit.model.gradients import read_gradients
from palign_fit.model.model import OpenedModel
from palign_fit.progress import Progress, no_progress


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
        kept: ModelCache | None = None,
        progress: Progress = no_progress,
    ) -> SentenceGradients:
        """Run the model over every example and the items ``used`` bool [N], or take it from ``kept``.

        Raises FitError for gradients that are not finite.
        """
        examples = Examples.of(inventory, used)
        prefix = prompts.chat_prefix(model.tokenizer, prompts.OPENINGS[0])
        lines = [prompts.continuation(model.tokenizer, one) for one in examples.sentences]

        def compute() -> Arrays:
            with progress("gradients", len(lines)) as tick:
                found = read_gradients(model, prefix, lines, tick)
            return {
                "gradients": found.gradients,
                "covariance": _covariance(found.outputs, examples.questionnaires),
            }

        key = {
            "prefix": prefix,
            "lines": lines,
            "questionnaires": examples.questionnaires.tolist(),
        }
        arrays = kept.load_or_compute("sentence gradients 1", key, compute) if kept else compute()
        if not np.isfinite(arrays["gradients"]).all():
            raise FitError(f"{model.base_model}: gives NaN or Inf gradients; try --dtype float32")
        return cls(examples, arrays["gradients"], arrays["covariance"])


def _covariance(outputs: Activations, groups: np.ndarray) -> Activations:
    """Covariance of each head's outputs [N, L, H, D] around their group's mean: [L, H, D, D]."""
    centred = np.concatenate([within(outputs[groups == group]) for group in np.unique(groups)])
    by_head = centred.transpose(1, 2, 3, 0)
    return np.asarray(by_head @ by_head.swapaxes(-1, -2) / len(centred), dtype=np.float32)
