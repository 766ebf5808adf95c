"""Answers to offsets, for any number of people: one small matrix product each.

Letters used for shapes: K steered heads, D head_dim, N items, W = 5 + N weights (the five traits, then every
item by itself) or 5 where no item is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask, Reals, significant
from vllm_palign.directions.scores import certainty, deviations, trait_scores
from vllm_palign.directions.traits import TRAIT_SPREAD, TRAITS
from vllm_palign.persona import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class SteeredHeads:
    """The K heads that are steered, sorted by (layer, head).

    ``layers``, ``heads`` int32 [K]; ``offsets`` float32 [K, D] in activation units for alpha 1;
    ``scores`` float64 [K], what each head was chosen for, measured on held-out examples.
    """

    layers: IntArray
    heads: IntArray
    offsets: FloatArray
    scores: Reals


@dataclass(frozen=True, eq=False)
class Basis:
    """What turns somebody's weights [W] into offsets. Arrays are as the file keeps them, float32; sums are
    made in float64.

    ``layers``, ``heads`` int32 [K]; ``scores`` float32 [K]; ``basis`` [W, K, D] in activation units;
    ``response`` [W, N], first-order change of every item's log-likelihood per token; ``quadratic`` [W, W],
    mean square of what the offsets disturb; ``covariance`` [K, D, D] of the heads' outputs. ``rows`` bool
    [N]: the items that anything was learned from.
    """

    inventory: Inventory
    rows: Mask
    layers: IntArray
    heads: IntArray
    scores: FloatArray
    basis: FloatArray
    response: FloatArray
    quadratic: FloatArray
    covariance: FloatArray

    def weights(self, agreement: Reals) -> Reals:
        """Trait scores, each as far as so many answers can be believed, and centred deviations from the
        usual answers: float64 [W], 0 where unknown.

        Answers to items outside ``rows`` are unknown.
        """
        known = self.rows & np.isfinite(agreement)
        scores = trait_scores(agreement, self.inventory, known)
        scores *= certainty(agreement, self.inventory, self.rows)
        away = np.where(known, deviations(agreement, self.inventory), 0.0)
        if known.any():
            away[known] -= away[known].mean()
        return np.concatenate([scores, away])

    def offsets(self, weights: Reals) -> tuple[Reals, float]:
        """Offsets float64 [K, D] for alpha 1 and what they were divided by.

        At alpha 1 they are as long as the heads' own movement along them (``relative_size``). All
        zeros, and 0, where there is nothing to steer towards.
        """
        raw = self._raw(weights)
        scale = relative_size(raw, self.wide_covariance)
        return (raw / scale if scale > 0 else raw * 0), scale

    def _raw(self, weights: Reals) -> Reals:
        known = np.flatnonzero(weights)
        # Few answers leave most of it unread; to pick all but a few would be a copy.
        few = 2 * len(known) < len(weights)
        flat = weights[known] @ self.wide_basis[known] if few else weights @ self.wide_basis
        return np.asarray(flat.reshape(self.basis.shape[1:]))

    def size(self, weights: Reals) -> float:
        """What ``offsets`` divides by: in float64, because figures are in the file, whose bytes every processor makes
        alike."""
        return relative_size(self._raw(weights), self.wide_covariance)

    def steering(self, weights: Reals) -> tuple[SteeredHeads, float]:
        """As ``offsets``, rounded as a persona keeps them, with their heads."""
        offsets, scale = self.offsets(weights)
        rounded = significant(offsets.astype(np.float32))
        return SteeredHeads(self.layers, self.heads, rounded, self._scores), scale

    def change(self, weights: Reals, scale: float) -> Reals:
        """First-order change of every item's log-likelihood per token at alpha 1: float64 [N]."""
        return np.asarray(weights @ self.wide_response / scale)

    def disturbance(self, weights: Reals, scale: float) -> float:
        """Mean square of the unwanted change at alpha 1; perplexity grows with it."""
        return float(weights @ self._quadratic @ weights) / scale**2

    def typical(self) -> Iterator[Typical]:
        """People at either end of each trait, where these directions move it at all."""
        for place in range(len(TRAITS)):
            for sign in (1, -1):
                weights = np.zeros(len(self.basis))
                weights[place] = sign * TRAIT_SPREAD
                steering, scale = self.steering(weights)
                if scale > 0:
                    yield Typical(place, sign, steering, self.disturbance(weights, scale))

    # Widened once: a server makes a thousand personas from one basis.
    @cached_property
    def wide_basis(self) -> Reals:
        """``basis`` in float64, [W, K x D]."""
        return self.basis.reshape(len(self.basis), -1).astype(np.float64)

    @cached_property
    def wide_covariance(self) -> Reals:
        """``covariance`` in float64."""
        return self.covariance.astype(np.float64)

    @cached_property
    def wide_response(self) -> Reals:
        """``response`` in float64."""
        return self.response.astype(np.float64)

    @cached_property
    def _quadratic(self) -> Reals:
        return self.quadratic.astype(np.float64)

    @cached_property
    def _scores(self) -> Reals:
        return self.scores.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Typical:
    """Somebody at one end of one trait, and usual in all else.

    ``trait`` its place in TRAITS, ``sign`` the end; ``disturbance`` is what ``steering`` disturbs at alpha 1.
    """

    trait: int
    sign: int
    steering: SteeredHeads
    disturbance: float


def relative_size(parts: Reals | FloatArray, covariance: Reals | FloatArray) -> float:
    """Length of offsets [K, D] beside how far the heads move by themselves.

    That is the root of the summed variances of the heads' outputs along their parts (the published
    scale, PAlign/pas.py ``get_interventions_dict``, head by head lets one silent head decide).
    ``covariance`` [K, D, D].
    """
    length = np.sqrt(np.einsum("kd,kd->k", parts, parts))
    units = parts / np.maximum(length, 1e-30)[:, None]
    variance = np.einsum("kd,kd->", np.matmul(covariance, units[:, :, None])[:, :, 0], units)
    return float(np.sqrt((length**2).sum() / max(float(variance), 1e-30)))
