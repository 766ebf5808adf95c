"""How hard to steer: measured by forward passes on items whose answers the direction never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from palign_fit import prompts
from palign_fit.answers import Subject
from palign_fit.contents import deviations
from palign_fit.inventory import Inventory
from palign_fit.likelihood import perplexity, statement_loglik
from palign_fit.model import SubjectModel
from palign_fit.probes import Mask, SteeredHeads, Weights, correlation, random_folds
from palign_fit.steer import steered_by

GRID = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
MAX_PERPLEXITY_RATIO = 1.15
"""Most that steering may raise the perplexity of neutral text; beyond it language starts to break."""

HELD_OUT_FOLDS = 3


class Method(Protocol):
    """What both fitting methods offer; ``rows`` bool [N] are the items whose answers may be used."""

    name: ClassVar[str]
    score_name: ClassVar[str]

    def check(self, subject: Subject) -> None: ...

    def fit(self, subject: Subject, rows: Mask, count: int) -> SteeredHeads: ...


@dataclass(frozen=True)
class Trial:
    """What one alpha did on held-out items.

    ``effect`` nats per token: how much likelier statements get that the subject agrees with than
    ones they disagree with, weighted by how far each answer is from the usual one. ``alignment``:
    correlation of the likelihood change with that distance. ``perplexity`` of neutral text.
    """

    alpha: float
    effect: float
    alignment: float
    perplexity: float


@dataclass(frozen=True)
class Yardstick:
    """The unsteered model: likelihood of every statement, float64 [N] nats per token, and perplexity."""

    model: SubjectModel
    inventory: Inventory
    prefix: list[int]
    statements: list[list[int]]
    plain: Weights
    plain_perplexity: float

    @classmethod
    def measure(cls, model: SubjectModel, inventory: Inventory) -> Yardstick:
        prefix = prompts.chat_prefix(model.tokenizer, prompts.OPENINGS[0])
        statements = [
            prompts.continuation(model.tokenizer, prompts.statement(item.text))
            for item in inventory.items
        ]
        return cls(
            model=model,
            inventory=inventory,
            prefix=prefix,
            statements=statements,
            plain=statement_loglik(model, prefix, statements),
            plain_perplexity=perplexity(model, prompts.NEUTRAL_TEXT),
        )

    def change(self, heads: SteeredHeads, alpha: float, rows: Mask) -> Weights:
        """Steered minus plain log-likelihood of the statements in ``rows``: float64, nats per token."""
        with steered_by(self.model, heads.layers, heads.heads, np.float32(alpha) * heads.offsets):
            chosen = [line for line, used in zip(self.statements, rows, strict=True) if used]
            return statement_loglik(self.model, self.prefix, chosen) - self.plain[rows]

    def perplexity(self, heads: SteeredHeads, alpha: float) -> float:
        """Perplexity of the neutral text under ``heads`` at ``alpha``."""
        with steered_by(self.model, heads.layers, heads.heads, np.float32(alpha) * heads.offsets):
            return perplexity(self.model, prompts.NEUTRAL_TEXT)


def search_alpha(
    yardstick: Yardstick,
    method: Method,
    subject: Subject,
    heads: SteeredHeads,
    *,
    grid: Sequence[float],
    seed: int,
    tick: Callable[[int], None] = lambda _: None,
) -> list[Trial]:
    """One trial per alpha of the rising ``grid``, up to the first beyond the perplexity bound.

    Each answered item is measured under a direction fitted without it (as many folds as
    HELD_OUT_FOLDS); perplexity under ``heads``, the one that will be saved. ``tick`` hears of every
    alpha done.
    """
    answered = np.isfinite(subject.agreement)
    folds = np.full(len(answered), -1)
    folds[answered] = random_folds(int(answered.sum()), seed, HELD_OUT_FOLDS)
    count = len(heads.layers)
    blind = [
        method.fit(subject, answered & (folds != fold), count) for fold in range(HELD_OUT_FOLDS)
    ]
    wanted = deviations(subject, yardstick.inventory)[answered]
    trials = []
    for alpha in grid:
        change = np.zeros(len(answered))
        for fold, fitted in enumerate(blind):
            change[folds == fold] = yardstick.change(fitted, alpha, folds == fold)
        trials.append(
            Trial(
                alpha=alpha,
                effect=_effect(change[answered], wanted),
                alignment=float(correlation(change[answered], wanted)),
                perplexity=yardstick.perplexity(heads, alpha),
            )
        )
        tick(1)
        if trials[-1].perplexity > MAX_PERPLEXITY_RATIO * yardstick.plain_perplexity:
            break
    return trials


def choose_trial(trials: Sequence[Trial], plain_perplexity: float) -> Trial:
    """The largest effect within the perplexity bound; the gentlest alpha if none is within it."""
    allowed = [one for one in trials if one.perplexity <= MAX_PERPLEXITY_RATIO * plain_perplexity]
    return max(allowed, key=lambda one: one.effect) if allowed else trials[0]


def _effect(change: Weights, wanted: Weights) -> float:
    """Mean change in the wanted direction; centred, so that agreeing with everything counts nothing."""
    centred = wanted - wanted.mean()
    total = np.abs(centred).sum()
    return float((change * centred).sum() / total) if total else 0.0
