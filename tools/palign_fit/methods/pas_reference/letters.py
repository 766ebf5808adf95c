"""The published method: letter A against letter E at the option prompt (PAS, arXiv 2408.11779), the
mass-mean directions of that contrast, and the heads that tell the letters apart on held-out items.

Reference code: zhu-minjun/PAlign, PAlign/pas.py and main.py. Kept apart from it: answers are
agreement with the printed text (the reference reads reversed scores as agreement, so minus-keyed
items push the wrong way), heads are ranked on held-out items only, folds are seeded, head_dim is
the model's own, and alpha never sees test items (``fitter.search_alpha``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from palign_fit.arrays import Activations, random_folds
from palign_fit.errors import InputError
from palign_fit.inputs.answers import Subject
from palign_fit.model import prompts
from palign_fit.model.continuations import collect
from palign_fit.model.model import OpenedModel
from vllm_palign.directions.basis import SteeredHeads
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import TINY, Mask, Reals, significant

MIN_DECIDED = 10
"""Fewest answers off the scale's middle that give every fold both labels."""


@dataclass(frozen=True, eq=False)
class Contrast:
    """Examples of one kind and how much each sounds like the subject.

    ``activations`` float32 [N, L, H, D]; ``weights`` float64 [N], positive like the subject, negative
    unlike; ``folds`` int64 [N], examples that must be held out together share a number.
    """

    activations: Activations
    weights: Reals
    folds: npt.NDArray[np.int64]

    def take(self, rows: Mask) -> Contrast:
        """Only the examples where ``rows`` bool [N] is true."""
        return Contrast(self.activations[rows], self.weights[rows], self.folds[rows])


def direction(contrast: Contrast) -> Activations:
    """Unit direction of every head: float32 [L, H, D], zero where the examples do not differ.

    The covariance of activations and weights. Centring both removes what all examples share, which
    in the letter contrast was 99 % of the squared norm.
    """
    weights = contrast.weights - contrast.weights.mean()
    centred = contrast.activations - contrast.activations.mean(0)
    found = np.tensordot(weights.astype(np.float32), centred, axes=1)
    length = np.linalg.norm(found, axis=-1, keepdims=True)
    return np.where(length > TINY, found / np.maximum(length, TINY), 0).astype(np.float32)


def held_out_projections(contrast: Contrast) -> Reals:
    """Projection of every example on a direction fitted without its fold: float64 [N, L, H].

    Measured from the mean of the examples that the direction was fitted on. Training examples never
    enter a head's score, so a head cannot rank high by memorising.
    """
    projections = np.zeros(contrast.activations.shape[:3])
    for fold in np.unique(contrast.folds):
        held = contrast.folds == fold
        train = contrast.take(~held)
        unseen = contrast.activations[held] - train.activations.mean(0)
        projections[held] = np.einsum("nlhd,lhd->nlh", unseen, direction(train))
    return projections


def held_out_accuracy(contrast: Contrast) -> Reals:
    """Share of held-out examples on the right side of the training mean, 0..1: float64 [L, H]."""
    right = np.sign(held_out_projections(contrast)) == np.sign(contrast.weights)[:, None, None]
    return np.asarray(right.mean(0))


def choose_heads(contrast: Contrast, count: int) -> SteeredHeads:
    """The ``count`` heads with the best held-out accuracy, with their offsets.

    Offset = unit direction x standard deviation of the examples' projections on it (PAlign/pas.py
    ``get_interventions_dict``). Ties go to the earlier head, so that runs repeat.
    """
    scores = held_out_accuracy(contrast)
    flat = np.argsort(-np.round(scores, 9).ravel(), kind="stable")[:count]
    layers, heads = np.unravel_index(np.sort(flat), scores.shape)
    chosen = direction(contrast)[layers, heads]
    projections = np.einsum("nkd,kd->nk", contrast.activations[:, layers, heads], chosen)
    return SteeredHeads(
        layers=layers.astype(np.int32),
        heads=heads.astype(np.int32),
        offsets=significant(chosen * projections.std(0)[:, None]),
        scores=scores[layers, heads],
    )


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
