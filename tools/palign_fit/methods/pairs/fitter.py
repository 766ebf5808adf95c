"""Preference pairs to a persona: towards what was chosen, away from what was rejected.

Of each pair, the difference of two gradients says which offsets make the chosen answer likelier than the
rejected one. Their mean is the direction, what is left of each pair is noise; heads and offsets are then
found as in the default method (``heads``, ``discriminant``, ``budget``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from palign_fit.arrays import Activations
from palign_fit.errors import InputError
from palign_fit.inputs.pairs import Pairs
from palign_fit.methods.budget import TextBudget
from palign_fit.methods.discriminant import Discriminant, covariance_of, take
from palign_fit.methods.heads import Group, choose, direction
from palign_fit.methods.pairs.data import PairData, margins, read_pair_data, usable
from palign_fit.methods.settings import check_heads, number_problems
from palign_fit.model.chats import Chats
from palign_fit.model.likelihood import reader_for
from palign_fit.model.model import OpenedModel, model_facts
from palign_fit.model.steer import steered_by
from vllm_palign.directions.basis import SteeredHeads, relative_size
from vllm_palign.directions.numbers import Mask, Reals, short, significant
from vllm_palign.directions.record import costly, new_persona, stopped
from vllm_palign.persona import Persona

METHOD = "palign-pairs"

_Z95 = 1.645


@dataclass(frozen=True)
class PairSettings:
    """``alpha`` None finds it; ``heads`` is K; ``seed`` draws samples and deals prompts into folds."""

    name: str
    description: str = ""
    heads: int = 24
    alpha: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        problems = list(number_problems(self.heads, self.alpha, self.seed))
        if problems:
            raise InputError("; ".join(problems))


@dataclass(frozen=True)
class HeldOut:
    """What steering does to pairs that neither heads nor direction were found from.

    ``accuracy``: share of pairs whose margin, log-likelihood per token of chosen minus rejected, rises;
    ``change`` its mean change in nats and ``error`` the standard error of that; ``prefers_chosen`` and
    ``prefers_chosen_plain``: share of margins above 0, steered and not.
    """

    pairs: int
    accuracy: float
    change: float
    error: float
    prefers_chosen: float
    prefers_chosen_plain: float

    @classmethod
    def of(cls, plain: Reals, steered: Reals) -> HeldOut:
        """From margins, each float64 [N]. Raises ValueError for fewer than two."""
        change = steered - plain
        if len(change) < 2:
            raise ValueError(f"{len(change)} margins, wanted at least 2")
        return cls(
            pairs=len(change),
            accuracy=float((change > 0).mean()),
            change=float(change.mean()),
            error=float(change.std(ddof=1) / math.sqrt(len(change))),
            prefers_chosen=float((steered > 0).mean()),
            prefers_chosen_plain=float((plain > 0).mean()),
        )

    @property
    def chance(self) -> float:
        """Probability that coin flips reach this accuracy."""
        right = round(self.accuracy * self.pairs)
        ways = sum(math.comb(self.pairs, k) for k in range(right, self.pairs + 1))
        return float(ways / 2**self.pairs)

    @property
    def weak(self) -> bool:
        """Whether accuracy or mean change could be chance (one-sided 5 %)."""
        return self.chance > 0.05 or self.change < _Z95 * self.error

    def as_json(self) -> dict[str, Any]:
        """What a persona records of it."""
        figures = {name: short(value) for name, value in vars(self).items() if name != "pairs"}
        return {"chance": short(self.chance), "held_out": {"pairs": self.pairs, **figures}}


def fit_pairs(
    model: OpenedModel,
    pairs: Pairs,
    settings: PairSettings,
    *,
    tick: Callable[[int], None] = lambda _: None,
) -> Persona:
    """A persona from preference pairs, with what it does to held-out ones in its record.

    ``tick`` hears of pairs read; each is read three times. Raises InputError for pairs or settings that
    cannot be fitted, FitError where the model does not give finite gradients.
    """
    check_heads(settings.heads, model)
    lines, notes = usable(model, pairs.pairs, settings.seed)
    data = read_pair_data(model, lines, settings.seed, tick)
    everything = np.ones(len(lines), bool)
    steering, disturbance = steer_towards(model, data, everything, settings.heads)
    budget = TextBudget.measure(Chats(model), [(steering, disturbance)])
    if settings.alpha is None:
        alpha, perplexity = budget.checked(steering, budget.alpha(disturbance))
    else:
        alpha = settings.alpha
        perplexity = budget.chats.under(steering, alpha)
    held = held_out(model, data, settings.heads, alpha, tick)
    return new_persona(
        model_facts(model),
        steering,
        name=settings.name,
        description=settings.description,
        method=METHOD,
        alpha=alpha,
        perplexity=(perplexity, budget.plain),
        score="held-out correlation",
        warnings=[
            *notes,
            *_weakness(held),
            *costly(alpha, perplexity, budget.plain),
            *(stopped(alpha, budget.most()) if settings.alpha is None else ()),
        ],
        weak=held.weak,
        fit={
            "alpha_from": "perplexity" if settings.alpha is None else "the user",
            "pairs": {"digest": pairs.digest, "given": len(pairs.pairs), "used": len(lines)},
            "seed": settings.seed,
            **held.as_json(),
        },
        max_strength=budget.strongest(steering, alpha, perplexity),
    )


def steer_towards(
    model: OpenedModel, data: PairData, rows: Mask, count: int
) -> tuple[SteeredHeads, float]:
    """Heads and offsets from the pairs in ``rows`` bool [N], and their disturbance at alpha 1.

    At alpha 1 the heads together move as far as they do by themselves (one standard deviation).
    """
    families = [
        [_mirrored(data.differences[rows & (data.folds == fold)])]
        for fold in np.unique(data.folds[rows])
    ]
    heads = choose(families, count)
    groups = [group for family in families for group in family]
    discriminant = Discriminant.of(groups, heads)
    raw = discriminant(take(direction(groups), heads).astype(np.float64))
    parts = raw[0].reshape(-1, model.head_dim)
    covariance = covariance_of(heads, data.covariance).astype(np.float64)
    scale = max(relative_size(parts, covariance), 1e-30)
    layers, places = np.divmod(heads.flat.astype(np.int32), model.num_heads)
    offsets = significant((parts / scale).astype(np.float32))
    steering = SteeredHeads(layers, places, offsets, heads.scores)
    return steering, float(discriminant.disturbance(raw / scale)[0])


def held_out(
    model: OpenedModel,
    data: PairData,
    count: int,
    alpha: float,
    tick: Callable[[int], None] = lambda _: None,
) -> HeldOut:
    """By real forward passes at ``alpha``: each fold under what the others give."""
    reader = reader_for(model)
    plain = margins(model, reader, data.lines, tick)
    steered = np.zeros(len(plain))
    for fold in np.unique(data.folds):
        rows = data.folds == fold
        heads, _ = steer_towards(model, data, ~rows, count)
        lines = [one for one, used in zip(data.lines, rows, strict=True) if used]
        with steered_by(model, heads.layers, heads.heads, np.float32(alpha) * heads.offsets):
            steered[rows] = margins(model, reader, lines, tick)
    return HeldOut.of(plain, steered)


def _mirrored(differences: Activations) -> Group:
    """Chosen and rejected around their pair's middle: what both share, the topic, is gone."""
    loadings = np.repeat([1.0, -1.0], len(differences))[:, None]
    return Group(np.concatenate([differences, -differences]) / 2, loadings)


def _weakness(held: HeldOut) -> Iterator[str]:
    """What a user should know before trusting this persona."""
    if held.weak:
        yield (
            f"weak: {held.accuracy:.0%} of {held.pairs} held-out pairs move towards the chosen answer, "
            f"by {held.change:.3f} nats a token on average (standard error {held.error:.3f}), which "
            "could be chance; give more pairs that differ in one way, or use a larger model"
        )
