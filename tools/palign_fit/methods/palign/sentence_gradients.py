"""Everything the default method needs from the model; nothing here depends on a subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from palign_fit.arrays import Activations, within
from palign_fit.errors import FitError
from palign_fit.methods.palign import sentences
from palign_fit.methods.palign.sentences import OPENED, Examples, Turn
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
        rows = _rows_of(examples)
        shape = (len(examples.sentences), model.num_layers, model.num_heads, model.head_dim)
        gradients, outputs = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        packs = list(_packs(model, examples))
        with (
            progress("gradients", sum(len(texts) for _, texts in packs)) as tick,
            computing_in(model.model, model.gradient_dtype),
        ):
            for turn, texts in packs:
                pack = _Pack.of(model, turn, texts)
                arrays, computed = pack.read(model, kept)
                for place, text in enumerate(texts):
                    gradients[rows.get((turn, text), [])] = arrays["gradients"][place]
                    outputs[rows.get((turn, text), [])] = arrays["outputs"][place]
                tick(len(texts), free=not computed)
        if not np.isfinite(gradients).all():
            raise FitError(f"{model.base_model}: gives NaN or Inf gradients; try --dtype float32")
        return cls(examples, gradients, _covariance(outputs, examples.questionnaires))


@dataclass(frozen=True)
class _Pack:
    """Sentences that answer one turn, as token ids: ``lines`` follow ``prefix``; see ``read_gradients`` for
    ``lead``."""

    prefix: list[int]
    lines: list[list[int]]
    lead: int

    @classmethod
    def of(cls, model: OpenedModel, turn: Turn, texts: Sequence[str]) -> _Pack:
        prefix = prompts.chat_prefix(model.tokenizer, turn.user, turn.system)
        lines = [prompts.continuation(model.tokenizer, text) for text in texts]
        if turn == OPENED:
            return cls(prefix, lines, 0)
        # How somebody's answer begins is half of how he speaks: steered as it is served.
        return cls(prefix[:-1], [[prefix[-1], *line] for line in lines], 1)

    def read(self, model: OpenedModel, kept: ModelCache | None) -> tuple[Arrays, bool]:
        """``gradients`` and ``outputs``, and whether they had to be computed."""
        computed = False

        def compute() -> Arrays:
            nonlocal computed
            computed = True
            found = read_gradients(model, Prefix(model, self.prefix), self.lines, lead=self.lead)
            return {"gradients": found.gradients, "outputs": found.outputs}

        key = {"prefix": self.prefix, "lines": self.lines, "lead": self.lead}
        arrays = kept.load_or_compute("sentence gradients 3", key, compute) if kept else compute()
        return arrays, computed


def _rows_of(examples: Examples) -> dict[tuple[Turn, str], list[int]]:
    """Where each sentence stands; some stand in two questionnaires."""
    rows: dict[tuple[Turn, str], list[int]] = {}
    for row, key in enumerate(zip(examples.turns, examples.sentences, strict=True)):
        rows.setdefault(key, []).append(row)
    return rows


def _packs(model: OpenedModel, examples: Examples) -> Iterator[tuple[Turn, list[str]]]:
    """Every sentence once, in batches of those that answer one turn: each shipped questionnaire whole, then what
    is the user's.

    What a sentence gives depends in the last bit on its batch; so batches are made of the same sentences in
    every run.
    """
    seen: set[tuple[Turn, str]] = set()
    said = list(zip(examples.turns, examples.sentences, strict=True))
    wanted = set(said)
    shipped = [[(one.turn, one.text) for one in kind] for kind in sentences.shipped()]
    for questionnaire in (*shipped, said):
        by_turn: dict[Turn, list[str]] = {}
        for turn, text in dict.fromkeys(questionnaire):
            if (turn, text) not in seen:
                by_turn.setdefault(turn, []).append(text)
        seen.update(questionnaire)
        for turn, texts in by_turn.items():
            texts.sort(key=lambda text: len(prompts.continuation(model.tokenizer, text)))
            for start in range(0, len(texts), BATCH):
                pack = texts[start : start + BATCH]
                if not wanted.isdisjoint((turn, text) for text in pack):
                    yield turn, pack


def _covariance(outputs: Activations, groups: np.ndarray) -> Activations:
    """Covariance of each head's outputs [N, L, H, D] around their group's mean: [L, H, D, D]."""
    centred = np.concatenate([within(outputs[groups == group]) for group in np.unique(groups)])
    by_head = centred.transpose(1, 2, 3, 0)
    return np.asarray(by_head @ by_head.swapaxes(-1, -2) / len(centred), dtype=np.float32)
