"""The published method: letter A against letter E at the option prompt (PAS, arXiv 2408.11779).

Reference code: zhu-minjun/PAlign, PAlign/pas.py and main.py. Kept apart from it: answers are
agreement with the printed text (the reference reads reversed scores as agreement, so minus-keyed
items push the wrong way), heads are ranked on held-out items only, folds are seeded, head_dim is
the model's own, and alpha never sees test items (``alpha.search_alpha``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from palign_fit.arrays import Activations
from palign_fit.errors import InputError
from palign_fit.inputs.answers import Subject
from palign_fit.methods.pas_reference.contrast import Contrast, choose_heads
from palign_fit.methods.steering import random_folds
from palign_fit.model import prompts
from palign_fit.model.continuations import collect
from palign_fit.model.model import OpenedModel
from vllm_palign.directions.basis import SteeredHeads
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask

MIN_DECIDED = 10
"""Fewest answers off the scale's middle that give every fold both labels."""


@dataclass(frozen=True, eq=False)
class ReferenceMethod:
    """``agree`` and ``disagree`` float32 [N, L, H, D]: each item answered (A) and (E)."""

    inventory: Inventory
    agree: Activations
    disagree: Activations
    seed: int

    name: ClassVar[str] = "pas-reference"
    score_name: ClassVar[str] = "held-out accuracy"

    @classmethod
    def prepare(
        cls, model: OpenedModel, inventory: Inventory, seed: int, tick: Callable[[int], None]
    ) -> ReferenceMethod:
        """Run the model over every item and both letters; nothing here depends on a subject."""
        lines = []
        for letter in prompts.OPTION_LETTERS:
            for item in inventory.items:
                question = prompts.OPTION_PROMPT.format(statement=item.text)
                prefix = prompts.chat_prefix(model.tokenizer, question)
                lines.append(prefix + prompts.continuation(model.tokenizer, f"({letter}"))
        # What all prompts start with is read once.
        shared = next(at for at, ids in enumerate(zip(*lines, strict=False)) if len(set(ids)) > 1)
        read = collect(model, lines[0][:shared], [line[shared:] for line in lines], tick)
        agree, disagree = np.split(read, 2)
        return cls(inventory=inventory, agree=agree, disagree=disagree, seed=seed)

    def check(self, subject: Subject) -> None:
        """Raises InputError where too few answers take a side."""
        decided = int(np.isfinite(subject.agreement).sum() - (subject.agreement == 3).sum())
        if decided < MIN_DECIDED:
            raise InputError(
                f"subject {subject.id!r}: {decided} answers other than 3, wanted at least "
                f"{MIN_DECIDED} for --method pas-reference; answer more items or use --method palign"
            )

    def fit(self, subject: Subject, rows: Mask, count: int) -> SteeredHeads:
        """Steered heads of ``subject`` from the answers in ``rows`` bool [N] alone."""
        return choose_heads(self.contrast(subject, rows), count)

    def contrast(self, subject: Subject, rows: Mask) -> Contrast:
        """Both letters of every decided item; weight +1 for the letter on the subject's side.

        With weights of +1 and -1 ``direction`` is the mean of the one minus the mean of the other.
        """
        rows = rows & np.isfinite(subject.agreement) & (subject.agreement != 3)
        side = np.where(subject.agreement[rows] > 3, 1.0, -1.0)
        return Contrast(
            activations=np.concatenate([self.agree[rows], self.disagree[rows]]),
            weights=np.concatenate([side, -side]),
            # An item's two prompts are held out together, else the probe would know the item.
            folds=np.tile(random_folds(len(side), self.seed), 2),
        )
