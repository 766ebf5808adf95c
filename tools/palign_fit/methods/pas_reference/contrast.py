"""Mass-mean directions from labelled activations, as the published method finds them, and the heads a
fit chose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from palign_fit.arrays import Activations
from vllm_palign.directions.basis import SteeredHeads
from vllm_palign.directions.numbers import TINY, Mask, Reals, significant


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
