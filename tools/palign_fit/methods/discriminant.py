"""Directions that move what they should and disturb little else: a regularised discriminant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palign_fit.arrays import Activations, within
from palign_fit.methods.heads import Choice, Group
from vllm_palign.directions.numbers import Reals

RIDGE = 5.0
"""Ridge as a multiple of the mean variance of a coordinate's noise. Between 2 and 20 it matters
little (docs/experiments/fit-variants.md)."""


@dataclass(frozen=True, eq=False)
class Discriminant:
    """(noise covariance + ridge)^-1 on the chosen heads, by its dual form where that is the smaller one.

    ``noise`` float64 [N, K * D]: gradients of all sentences around their groups' means, without what
    their loadings explain. Directions along it change how sentences are worded, not what they say.
    """

    choice: Choice
    noise: Reals
    _inverse: Reals
    _ridge: float

    @classmethod
    def of(cls, groups: Sequence[Group], choice: Choice) -> Discriminant:
        gradients = np.concatenate([within(take(one.gradients, choice)) for one in groups])
        gradients = gradients.astype(np.float64)
        loadings = np.concatenate([within(one.loadings) for one in groups])
        explained = loadings @ np.linalg.lstsq(loadings, gradients, rcond=None)[0]
        noise = gradients - explained
        # Few heads have fewer coordinates than there are sentences.
        by_sentence = len(noise) <= noise.shape[1]
        kernel = noise @ noise.T if by_sentence else noise.T @ noise
        ridge = RIDGE * float(np.trace(kernel)) / gradients.shape[1]
        one = np.eye(len(kernel))
        # Without noise nothing is weighed, and the kernel has no inverse.
        return cls(choice, noise, np.linalg.inv(kernel + ridge * one) if ridge else one, ridge)

    def __call__(self, directions: Reals) -> Reals:
        """``directions`` [M, K * D] against the noise: float64 [M, K * D]."""
        if self._ridge == 0:
            return directions
        if len(self._inverse) != len(self.noise):
            return np.asarray(directions @ self._inverse)
        seen = self._inverse @ (self.noise @ directions.T)
        return np.asarray((directions - seen.T @ self.noise) / self._ridge)

    def disturbance(self, directions: Reals) -> Reals:
        """Mean square of what ``directions`` [M, K * D] do beside what they should: float64 [M]."""
        return np.asarray(((directions @ self.noise.T) ** 2).mean(1))


def take(values: Activations, choice: Choice) -> Activations:
    """The chosen heads of [N, L, H, D]: [N, K * D]."""
    return np.asarray(
        values.reshape(len(values), -1, values.shape[-1])[:, choice.flat].reshape(len(values), -1)
    )


def covariance_of(choice: Choice, covariance: Activations) -> Activations:
    """The chosen heads of ``covariance`` float32 [L, H, D, D]: [K, D, D]."""
    size = covariance.shape[-1]
    return np.ascontiguousarray(covariance.reshape(-1, size, size)[choice.flat])
