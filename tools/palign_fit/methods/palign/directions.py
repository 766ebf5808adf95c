"""What turns answers into offsets, found from gradients: the five traits, and every item by itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from palign_fit.methods.discriminant import Discriminant, covariance_of, take
from palign_fit.methods.heads import Choice, Group, choose, direction
from palign_fit.methods.palign.sentence_gradients import SentenceGradients
from palign_fit.methods.palign.sentences import Kind
from vllm_palign.directions.basis import Basis
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask, Reals
from vllm_palign.directions.traits import ITEM_SPREAD, TRAIT_SPREAD, TRAITS

OWN_SHARE = 0.5
"""Size of the part from single answers beside the part from the five trait scores."""

ADJECTIVE_WEIGHT, DENIAL_WEIGHT = 2.0, 0.5
"""How much a trait adjective and a denial count beside a statement in the five trait directions. Adjectives
say the trait and little else; a denial is there to take off what is said in both, and is the less natural
sentence. Chosen inside the training items (docs/experiments/fit-variants.md)."""

PARTS = 3
"""The shipped statements count as so many questionnaires when heads are chosen."""


def solve(
    sentences: SentenceGradients,
    inventory: Inventory,
    rows: Mask,
    count: int,
    *,
    alone: bool = False,
) -> Basis:
    """Choose ``count`` heads and solve for the directions.

    The five trait directions and the heads come from the shipped sentences and from the items in
    ``rows`` bool [N]; an item also enters by its own direction, times its answer. Nothing is learned from
    items outside ``rows``, neither from their texts nor their keys. ``alone``: the five trait directions
    only.
    """
    families = list(_families(sentences, rows))
    heads = choose(families, count)
    groups = [group for family in families for group in family]
    discriminant = Discriminant.of(groups, heads)
    traits = take(direction(groups, weighted=True), heads).astype(np.float64)
    length = np.linalg.norm(traits, axis=1, keepdims=True)
    basis = discriminant(traits / np.maximum(length, 1e-30))
    basis /= max(TRAIT_SPREAD * np.sqrt((basis**2).sum()), 1e-30)
    said = _side(sentences, np.ones(len(rows), bool), denials=False)
    if not alone:
        own = discriminant(_own_directions(sentences, rows, heads))
        loadings = np.zeros((len(rows), len(TRAITS)))
        loadings[sentences.examples.items[said]] = sentences.examples.loadings[said]
        typical = TRAIT_SPREAD**2 * ((loadings.T @ own) ** 2).sum()
        typical += ITEM_SPREAD**2 * (own**2).sum()
        basis = np.concatenate([basis, own * OWN_SHARE / max(np.sqrt(typical), 1e-30)])
    response = np.zeros((len(basis), len(rows)))
    gradients = take(sentences.gradients[said], heads).astype(np.float64)
    response[:, sentences.examples.items[said]] = basis @ gradients.T
    disturbed = basis @ discriminant.noise.T
    covariance = covariance_of(heads, sentences.covariance)
    layers, places = np.divmod(heads.flat.astype(np.int32), sentences.covariance.shape[1])
    return Basis(
        inventory=inventory,
        rows=rows,
        layers=layers.astype(np.int32),
        heads=places.astype(np.int32),
        scores=heads.scores.astype(np.float32),
        basis=basis.reshape(len(basis), len(heads.flat), -1).astype(np.float32),
        response=response.astype(np.float32),
        quadratic=(disturbed @ disturbed.T / len(discriminant.noise)).astype(np.float32),
        covariance=covariance,
    )


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
