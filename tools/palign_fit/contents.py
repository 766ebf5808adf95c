"""The default method: what the subject would and would not say about themself.

Three kinds of examples, each read where the model is about to go on as the speaker
(``prompts.read_out``): trait adjectives ("I am talkative" against "I am quiet") and the built-in
statements, both weighted by the subject's trait scores, and the subject's own items, weighted by how
far each answer is from what people usually answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from palign_fit import prompts
from palign_fit.activations import Activations, collect
from palign_fit.answers import Subject
from palign_fit.inventory import TRAITS, Inventory, Item, built_in
from palign_fit.model import SubjectModel
from palign_fit.probes import (
    Contrast,
    Mask,
    SteeredHeads,
    Weights,
    choose_heads,
    direction,
    held_out_correlation,
    random_folds,
    unit,
)

TYPICAL = {"O": 3.6, "C": 3.5, "E": 3.3, "A": 3.6, "N": 2.9}
"""What people usually score on each trait, 1..5: means of 150 IPIP-NEO-300 respondents of the PAPI
data set, rounded. Without them everybody would look agreeable, conscientious and open."""


def deviations(subject: Subject, inventory: Inventory) -> Weights:
    """How far each answer is from the usual one: float64 [N], in scale points, NaN where missing.

    The usual answer to an item keyed + is its trait's TYPICAL mean, to one keyed - its mirror image.
    """
    usual = np.array([3 + item.sign * (TYPICAL[item.trait] - 3) for item in inventory.items])
    return np.asarray(subject.agreement - usual)


def trait_scores(subject: Subject, inventory: Inventory, rows: Mask) -> dict[str, float]:
    """Mean keyed deviation per trait over the items in ``rows``; 0 for a trait without answers."""
    keyed = deviations(subject, inventory) * [item.sign for item in inventory.items]
    scores = {}
    for trait in TRAITS:
        own = rows & np.array([item.trait == trait for item in inventory.items])
        values = keyed[own & np.isfinite(keyed)]
        scores[trait] = float(values.mean()) if len(values) else 0.0
    return scores


@dataclass(frozen=True, eq=False)
class ContentMethod:
    """Activations shared by all subjects of one model and inventory, each float32 [N, L, H, D].

    ``adjectives`` in the order of ``poles`` (trait, +1 or -1); ``statements`` in the order of
    ``own``, the built-in items; ``items`` in the order of the user's inventory.
    """

    inventory: Inventory
    own: tuple[Item, ...]
    poles: tuple[tuple[str, int], ...]
    adjectives: Activations
    statements: Activations
    items: Activations
    seed: int

    name: ClassVar[str] = "palign"
    score_name: ClassVar[str] = "held-out correlation"

    @classmethod
    def prepare(
        cls, model: SubjectModel, inventory: Inventory, seed: int, tick: Callable[[int], None]
    ) -> ContentMethod:
        """Run the model over every example; nothing here depends on a subject."""
        words = [
            (trait, sign, word)
            for trait, (high, low) in prompts.ADJECTIVES.items()
            for sign, pole in ((1, high), (-1, low))
            for word in pole.split(", ")
        ]
        own = built_in().items
        texts = [f"I am {word}." for _, _, word in words]
        texts += [prompts.statement(item.text) for item in own]
        new = [item for item in inventory.items if prompts.statement(item.text) not in texts]
        texts += [prompts.statement(item.text) for item in new]
        read = averaged(model, texts, tick)
        row_of = {text: row for row, text in enumerate(texts)}
        return cls(
            inventory=inventory,
            own=own,
            poles=tuple((trait, sign) for trait, sign, _ in words),
            adjectives=read[: len(words)],
            statements=read[len(words) : len(words) + len(own)],
            items=read[[row_of[prompts.statement(item.text)] for item in inventory.items]],
            seed=seed,
        )

    def check(self, subject: Subject) -> None:
        """Every subject that can be measured can be fitted by this method."""

    def fit(self, subject: Subject, rows: Mask, count: int) -> SteeredHeads:
        """Steered heads of ``subject`` from the answers in ``rows`` bool [N] alone.

        The three kinds of examples count alike, in the direction (sum of unit directions) and in the
        ranking (mean of held-out scores).
        """
        contrasts = self.contrasts(subject, rows)
        directions = unit(np.sum([direction(one) for one in contrasts], axis=0))
        scores = np.mean([held_out_correlation(one) for one in contrasts], axis=0)
        centred = [one.activations - one.activations.mean(0) for one in contrasts]
        return choose_heads(directions, scores, centred, count)

    def contrasts(self, subject: Subject, rows: Mask) -> list[Contrast]:
        """The examples weighted for ``subject``. A text outside ``rows`` is in none of them."""
        rows = rows & np.isfinite(subject.agreement)
        scores = trait_scores(subject, self.inventory, rows)
        unused = {
            item.text for item, used in zip(self.inventory.items, rows, strict=True) if not used
        }
        visible = np.array([item.text not in unused for item in self.own])
        examples = [
            (self.adjectives, np.array([scores[trait] * sign for trait, sign in self.poles])),
            (
                self.statements[visible],
                np.array([scores[item.trait] * item.sign for item in self.own])[visible],
            ),
            (self.items[rows], deviations(subject, self.inventory)[rows]),
        ]
        return [
            Contrast(activations, weights, random_folds(len(weights), self.seed))
            for activations, weights in examples
            if len(weights) >= 2
        ]


def averaged(
    model: SubjectModel, sentences: Sequence[str], tick: Callable[[int], None]
) -> Activations:
    """Head outputs after each sentence, mean over the openings: float32 [N, L, H, D]."""
    lines = [prompts.continuation(model.tokenizer, prompts.read_out(one)) for one in sentences]
    total = sum(
        collect(model, prompts.chat_prefix(model.tokenizer, opening), lines, tick)
        for opening in prompts.OPENINGS
    )
    return np.asarray(total / len(prompts.OPENINGS), dtype=np.float32)
