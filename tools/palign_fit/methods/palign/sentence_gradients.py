"""Everything the default method needs from the model; nothing here depends on a subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from palign_fit.arrays import Activations, within
from palign_fit.errors import FitError
from palign_fit.methods.palign import sentences
from palign_fit.methods.palign.sentences import Examples
from palign_fit.model import prompts
from palign_fit.model.cache import Arrays, ModelCache
from palign_fit.model.continuations import BATCH, Prefix
from palign_fit.model.gradients import read_gradients
from palign_fit.model.model import OpenedModel
from palign_fit.model.narrow import computing_in
from palign_fit.progress import Progress, no_progress
from vllm_palign.directions.inventory import Inventory


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
        """Run the model over every example and the items ``used`` bool [N], or take them from ``kept``.

        Sentences are read and kept in packs that do not depend on what else is read: a stage that was
        stopped goes on where it was, and another inventory finds the shipped sentences done, bit for bit
        the same. Raises FitError for gradients that are not finite.
        """
        examples = Examples.of(inventory, used)
        tokens = prompts.chat_prefix(model.tokenizer, prompts.OPENINGS[0])
        prefix = cache(lambda: Prefix(model, tokens))
        rows = _rows_of(examples.sentences)
        shape = (len(examples.sentences), model.num_layers, model.num_heads, model.head_dim)
        gradients, outputs = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        packs = list(_packs(model, examples.sentences))
        with (
            progress("gradients", sum(map(len, packs))) as tick,
            computing_in(model.model, model.gradient_dtype),
        ):
            for pack in packs:
                lines = [prompts.continuation(model.tokenizer, sentence) for sentence in pack]
                computed: list[int] = []

                def compute(
                    lines: Sequence[list[int]] = lines, done: list[int] = computed
                ) -> Arrays:
                    found = read_gradients(model, prefix(), lines, done.append)
                    return {"gradients": found.gradients, "outputs": found.outputs}

                key = {"prefix": tokens, "lines": lines}
                arrays = (
                    kept.load_or_compute("sentence gradients 2", key, compute)
                    if kept
                    else compute()
                )
                for place, sentence in enumerate(pack):
                    gradients[rows.get(sentence, [])] = arrays["gradients"][place]
                    outputs[rows.get(sentence, [])] = arrays["outputs"][place]
                tick(len(pack), free=not computed)
        if not np.isfinite(gradients).all():
            raise FitError(f"{model.base_model}: gives NaN or Inf gradients; try --dtype float32")
        return cls(examples, gradients, _covariance(outputs, examples.questionnaires))


def _rows_of(texts: Sequence[str]) -> dict[str, list[int]]:
    """Where each sentence stands; some stand in two questionnaires."""
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(text, []).append(row)
    return rows


def _packs(model: OpenedModel, texts: Sequence[str]) -> Iterator[list[str]]:
    """Every one of ``texts`` once, in batches: each shipped questionnaire whole, then what is the user's.

    What a sentence gives depends in the last bit on its batch; so batches are made of the same sentences in
    every run.
    """
    seen: set[str] = set()
    wanted = set(texts)
    for questionnaire in (*sentences.shipped(), texts):
        new = [text for text in dict.fromkeys(questionnaire) if text not in seen]
        seen.update(new)
        new.sort(key=lambda text: len(prompts.continuation(model.tokenizer, text)))
        for start in range(0, len(new), BATCH):
            pack = new[start : start + BATCH]
            if not wanted.isdisjoint(pack):
                yield pack


def _covariance(outputs: Activations, groups: np.ndarray) -> Activations:
    """Covariance of each head's outputs [N, L, H, D] around their group's mean: [L, H, D, D]."""
    centred = np.concatenate([within(outputs[groups == group]) for group in np.unique(groups)])
    by_head = centred.transpose(1, 2, 3, 0)
    return np.asarray(by_head @ by_head.swapaxes(-1, -2) / len(centred), dtype=np.float32)
