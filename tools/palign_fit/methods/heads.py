"""Which heads to steer: those that carry a direction over to a questionnaire it was not found on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from palign_fit.arrays import Activations, within
from vllm_palign.directions.numbers import TINY, Reals

_FEWEST = 8
"""Smallest questionnaire that can tell how well a head carries over."""


@dataclass(frozen=True, eq=False)
class Group:
    """Sentences of one kind. ``gradients`` float32 [N, L, H, D]; ``loadings`` float64 [N, T], what the
    sentences should answer to: T traits, or one preference. ``weight``: how much they count in the
    direction that is steered along; heads are chosen with all counting alike."""

    gradients: Activations
    loadings: Reals
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Choice:
    """``flat`` int64 [K] rising, layer x H + head; ``scores`` float64 [K], how well each alone carries
    over: correlation with the loadings of unseen groups, mean over groups and columns."""

    flat: npt.NDArray[np.int64]
    scores: Reals


def direction(groups: Sequence[Group], *, weighted: bool = False) -> Activations:
    """Covariance of loadings and gradients, summed over groups, each around its mean: [T, L, H, D].

    ``weighted``: each group times its weight.
    """
    return np.asarray(
        sum(
            np.tensordot(
                (one.weight if weighted else 1.0) * within(one.loadings).T.astype(np.float32),
                within(one.gradients),
                axes=1,
            )
            for one in groups
        )
    )


def choose(families: Sequence[Sequence[Group]], count: int) -> Choice:
    """Forward selection of ``count`` heads.

    ``families`` are questionnaires, each one or more groups (statements and their denials). A family's
    sentences are moved by directions found on all others. A head joins if with it the movement
    correlates best with the loadings, mean over families and columns. Families of fewer than 8
    sentences only lend directions. Ties go to the earlier head, so that runs repeat.
    """
    found = [direction(family) for family in families]
    total = np.asarray(sum(found))
    moved: list[Reals] = []
    wanted: list[Reals] = []
    for family, own in zip(families, found, strict=True):
        if sum(len(one.loadings) for one in family) < _FEWEST:
            continue
        effect = np.concatenate([_moved(one.gradients, total - own) for one in family], axis=1)
        loadings = np.concatenate([within(one.loadings) for one in family]).T
        if not loadings.any():
            continue
        moved.append(effect / max(float(np.sqrt((effect.sum(2) ** 2).mean())), TINY))
        wanted.append(loadings / np.maximum(np.linalg.norm(loadings, axis=1, keepdims=True), TINY))
    heads = total[0].shape[0] * total[0].shape[1]
    if len(found) < 2 or not moved:
        return _largest(total.reshape(len(total), heads, -1), count)
    alone = _correlations(moved, wanted, [np.zeros(one.shape[:2]) for one in moved])
    current = [np.zeros(one.shape[:2]) for one in moved]
    picked: list[int] = []
    for _ in range(count):
        score = _correlations(moved, wanted, current)
        score[picked] = -np.inf
        best = int(np.argmax(np.round(score, 9)))
        picked.append(best)
        current = [held + one[:, :, best] for held, one in zip(current, moved, strict=True)]
    flat = np.sort(np.array(picked))
    return Choice(flat, alone[flat])


def _moved(gradients: Activations, directions: Activations) -> Reals:
    """What each head's part of ``directions`` [T, L, H, D] does to each sentence: [T, N, L * H]."""
    effect = np.einsum("nlhd,tlhd->tnlh", within(gradients), directions, optimize=True)
    return np.asarray(effect.reshape(*effect.shape[:2], -1), dtype=np.float64)


def _correlations(
    moved: Sequence[Reals], wanted: Sequence[Reals], current: Sequence[Reals]
) -> Reals:
    """Correlation with the loadings once each head is added to ``current``, mean: float64 [L * H]."""
    scores = []
    for effect, loadings, held in zip(moved, wanted, current, strict=True):
        # |held + e|^2 without building held + e for every head.
        inner = np.einsum("tn,tnh->th", loadings, effect) + (loadings * held).sum(1)[:, None]
        norm = (effect**2).sum(1) + 2 * np.einsum("tn,tnh->th", held, effect)
        norm = np.sqrt(np.maximum(norm + (held**2).sum(1)[:, None], TINY**2))
        # Every group is around its mean already.
        scores.append((inner / np.maximum(norm, TINY)).mean(0))
    return np.asarray(np.mean(scores, axis=0))


def _largest(directions: Activations, count: int) -> Choice:
    """Without a second questionnaire there is nothing to carry over to: the largest directions."""
    size = np.linalg.norm(directions, axis=2).mean(0)
    flat = np.sort(np.argsort(-size, kind="stable")[:count])
    return Choice(flat, np.zeros(len(flat)))
