"""Answers to offsets, for any number of subjects: one small matrix product each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from palign_fit.arrays import Activations, Mask, Reals, significant
from palign_fit.inputs.answers import Subject
from palign_fit.inputs.inventory import Inventory
from palign_fit.inputs.scores import deviations, trait_scores
from palign_fit.inputs.traits import TRAITS
from palign_fit.methods.discriminant import Discriminant, relative_size, take
from palign_fit.methods.heads import Choice, Group, choose, direction
from palign_fit.methods.palign.sentence_gradients import SentenceGradients
from palign_fit.methods.palign.sentences import Kind
from palign_fit.methods.steering import SteeredHeads

OWN_SHARE = 0.5
"""Size of the part from single answers beside the part from the five trait scores."""

TRAIT_SPREAD, ITEM_SPREAD = 0.55, 1.0
"""Typical standard deviations over people, in scale points: of a trait score, and of an answer around
what the person's trait scores predict."""

ADJECTIVE_WEIGHT, DENIAL_WEIGHT = 2.0, 0.5
"""How much a trait adjective and a denial count beside a statement in the five trait directions. Adjectives
say the trait and little else; a denial is there to take off what is said in both, and is the less natural
sentence. Chosen inside the training items (docs/experiments/fit-variants.md)."""

PARTS = 3
"""The shipped statements count as so many questionnaires when heads are chosen."""


@dataclass(frozen=True, eq=False)
class Directions:
    """What turns a subject's weights [5 + N] into offsets.

    ``basis`` float64 [5 + N, K * D] in activation units; ``response`` float64 [5 + N, N], first-order
    change of every item's log-likelihood per token; ``quadratic`` float64 [5 + N, 5 + N], mean square
    of what the offsets disturb; ``covariance`` float32 [L, H, D, D], see ``sentence_gradients``.

    The five trait directions and the heads come from the shipped sentences and from the items in
    ``rows`` bool [N]; an item also enters by its own direction, times its answer.
    """

    inventory: Inventory
    rows: Mask
    choice: Choice
    basis: Reals
    response: Reals
    quadratic: Reals
    covariance: Activations

    @classmethod
    def of(
        cls, sentences: SentenceGradients, inventory: Inventory, rows: Mask, count: int
    ) -> Directions:
        """Choose ``count`` heads and solve for the directions.

        Nothing is learned from items outside ``rows``, neither from their texts nor their keys.
        """
        families = list(_families(sentences, rows))
        heads = choose(families, count)
        groups = [group for family in families for group in family]
        discriminant = Discriminant.of(groups, heads)
        traits = take(direction(groups, weighted=True), heads).astype(np.float64)
        length = np.linalg.norm(traits, axis=1, keepdims=True)
        solved = discriminant(traits / np.maximum(length, 1e-30))
        solved /= max(TRAIT_SPREAD * np.sqrt((solved**2).sum()), 1e-30)
        own = discriminant(_own_directions(sentences, rows, heads))
        loadings = np.zeros((len(rows), len(TRAITS)))
        said = _side(sentences, np.ones(len(rows), bool), denials=False)
        loadings[sentences.examples.items[said]] = sentences.examples.loadings[said]
        typical = TRAIT_SPREAD**2 * ((loadings.T @ own) ** 2).sum()
        typical += ITEM_SPREAD**2 * (own**2).sum()
        basis = np.concatenate([solved, own * OWN_SHARE / max(np.sqrt(typical), 1e-30)])
        response = np.zeros((len(basis), len(rows)))
        gradients = take(sentences.gradients[said], heads).astype(np.float64)
        response[:, sentences.examples.items[said]] = basis @ gradients.T
        disturbed = basis @ discriminant.noise.T
        return cls(
            inventory=inventory,
            rows=rows,
            choice=heads,
            basis=basis,
            response=response,
            quadratic=disturbed @ disturbed.T / len(discriminant.noise),
            covariance=sentences.covariance,
        )

    def weights(self, subject: Subject) -> Reals:
        """Trait scores and centred deviations from the usual answers: [5 + N], 0 where unknown.

        Answers to items outside ``rows`` are unknown.
        """
        known = self.rows & np.isfinite(subject.agreement)
        scores = trait_scores(subject, self.inventory, known)
        away = np.where(known, deviations(subject, self.inventory), 0.0)
        if known.any():
            away[known] -= away[known].mean()
        return np.concatenate([[scores[trait] for trait in TRAITS], away])

    def offsets(self, weights: Reals) -> tuple[Reals, float]:
        """Offsets float64 [K, D] for alpha 1 and what they were divided by.

        At alpha 1 they are as long as the heads' own movement along them (``relative_size``). All
        zeros, and 0, where there is nothing to steer towards.
        """
        raw = weights @ self.basis
        scale = float(relative_size(raw[None], self.covariance, self.choice)[0])
        size = self.covariance.shape[-1]
        return (raw / scale if scale > 0 else raw * 0).reshape(-1, size), scale

    def steering(self, weights: Reals) -> tuple[SteeredHeads, float]:
        """As ``offsets``, rounded as a file keeps them, with their heads."""
        offsets, scale = self.offsets(weights)
        heads = self.covariance.shape[1]
        return SteeredHeads.of(self.choice.flat, offsets, self.choice.scores, heads), scale

    def typical(self) -> Iterator[Typical]:
        """People at either end of each trait, where these directions move it at all."""
        for place in range(len(TRAITS)):
            for sign in (1, -1):
                weights = np.zeros(len(self.basis))
                weights[place] = sign * TRAIT_SPREAD
                steering, scale = self.steering(weights)
                if scale > 0:
                    yield Typical(place, sign, steering, self.disturbance(weights, scale))

    def known_by(self) -> list[object]:
        """What the trait directions are known by in the cache."""
        basis = significant(self.basis[: len(TRAITS)].astype(np.float32), 4)
        return [self.choice.flat.tolist(), basis.tolist()]

    def change(self, weights: Reals, scale: float) -> Reals:
        """First-order change of every item's log-likelihood per token at alpha 1: float64 [N]."""
        return np.asarray(weights @ self.response / scale)

    def disturbance(self, weights: Reals, scale: float) -> float:
        """Mean square of the unwanted change at alpha 1; perplexity grows with it."""
        return float(weights @ self.quadratic @ weights) / scale**2


@dataclass(frozen=True, eq=False)
class Typical:
    """Somebody at one end of one trait, and usual in all else.

    ``trait`` its place in TRAITS, ``sign`` the end; ``disturbance`` is what ``steering`` disturbs at alpha 1.
    """

    trait: int
    sign: int
    steering: SteeredHeads
    disturbance: float


def _families(sentences: SentenceGradients, rows: Mask) -> Iterator[list[Group]]:
    """The questionnaires directions are found on: statements and their denials apart."""
    examples = sentences.examples
    # A statement and its denial stand together.
    part = np.where(
        examples.questionnaires == Kind.STATEMENTS, np.arange(len(examples.items)) // 2 % PARTS, 0
    )
    used = (examples.items < 0) | rows[np.maximum(examples.items, 0)]
    for kind in np.unique(examples.questionnaires):
        for one in np.unique(part[examples.questionnaires == kind]):
            own = used & (examples.questionnaires == kind) & (part == one)
            said = ADJECTIVE_WEIGHT if kind == Kind.ADJECTIVES else 1.0
            sides = ((own & ~examples.denials, said), (own & examples.denials, DENIAL_WEIGHT))
            groups = [
                Group(sentences.gradients[side], examples.loadings[side], weight)
                for side, weight in sides
                if side.any()
            ]
            if groups:
                yield groups


def _side(sentences: SentenceGradients, rows: Mask, *, denials: bool) -> Mask:
    """Examples that are the user's items in ``rows``, or their denials: bool [E]."""
    examples = sentences.examples
    own = (examples.questionnaires == Kind.ITEMS) & rows[np.maximum(examples.items, 0)]
    return np.asarray(own & (examples.denials == denials))


def _own_directions(sentences: SentenceGradients, rows: Mask, heads: Choice) -> Reals:
    """Each item in ``rows``: its statement's gradient minus its denial's, around the mean. [N, K * D]."""
    found = np.zeros((len(rows), len(heads.flat) * sentences.gradients.shape[-1]))
    for denials in (False, True):
        side = _side(sentences, rows, denials=denials)
        if side.any():
            part = take(sentences.gradients[side], heads).astype(np.float64)
            found[sentences.examples.items[side]] += (part - part.mean(0)) * (-1 if denials else 1)
    return found
