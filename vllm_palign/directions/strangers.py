"""Personas of other people, to measure somebody's own beside: a stranger's should not follow them as well.

People's real answers go together in more ways than any simulation knows, and a model's directions go where they do.
So the answers stay those of the person, and the personas are other people's. Letters: P people, N items, K steered
heads, D head_dim, W weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vllm_palign.directions.basis import Basis
from vllm_palign.directions.norm import NormSample
from vllm_palign.directions.numbers import TINY, Reals


def changes(blind: Sequence[Basis], folds: npt.NDArray[np.int32]) -> NormSample:
    """What the personas of simulated people who answered everything do to each item, of first order and at alpha 1:
    every item under the directions of ``blind`` that do not know it. ``folds`` int32 [N]."""
    inventory = blind[0].inventory
    answers = inventory.usual + inventory.people.values
    found = np.zeros(answers.shape)
    for fold, basis in enumerate(blind):
        weights = np.array([basis.weights(own) for own in answers])
        moved = weights @ basis.wide_response[:, folds == fold]
        found[:, folds == fold] = moved / np.maximum(_sizes(basis, weights), TINY)[:, None]
    return NormSample(found.astype(np.float32))


def _sizes(basis: Basis, weights: Reals) -> Reals:
    """``Basis.size`` of many people's ``weights`` [P, W] at once: float64 [P]."""
    parts = (weights @ basis.wide_basis).reshape(len(weights), *basis.basis.shape[1:])
    squares = np.einsum("pkd,pkd->pk", parts, parts)
    units = parts / np.sqrt(np.maximum(squares, TINY))[:, :, None]
    turned = np.matmul(units.swapaxes(0, 1), basis.wide_covariance)  # [K, P, D]
    variances = np.einsum("kpd,pkd->p", turned, units)
    return np.asarray(np.sqrt(squares.sum(1) / np.maximum(variances, TINY)), dtype=np.float64)
