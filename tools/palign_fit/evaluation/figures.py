"""Readings and answers to the figures of the report: everything in the JSON output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from palign_fit.evaluation import measures as ms
from palign_fit.evaluation.conditions import CONDITIONS, PALIGN, PLAIN
from palign_fit.evaluation.intervals import (
    Bootstrap,
    Measured,
    differences,
    known_number,
    measured_json,
)
from palign_fit.evaluation.readings import Readings
from palign_fit.evaluation.split import Sheet, trait_masks, trait_means, usual_answers
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.norm import RARE
from vllm_palign.directions.numbers import Reals

MIN_STRANGERS = 20
"""Subjects from which on the others stand for other people; the best of so many has a rank of 0.05."""

MEASURE_TEXT = {
    "alignment": "correlation of the change in log-likelihood of unseen statements with the answers "
    "to them, both from the usual",
    "alignment_centred": "the same after taking off the mean change over the other subjects",
    "positive": "share of subjects with alignment above 0",
    "rank": "share of people who do as well: other subjects under whose condition the answers are followed; of "
    f"fewer than {MIN_STRANGERS} subjects, simulated people who are followed (chance 0.5)",
    "followed": f"share of subjects of rank {RARE:g} or better (chance {RARE:g})",
    "identification": "share of pairs of subjects told apart (chance 0.5)",
    "error": "absolute error of the answers that the change tells, usual + slope x change with one slope "
    "from the other subjects; traits summed",
    "perplexity_ratio": "perplexity of neutral text / plain",
    "rating": "how well answers fit the person, 1 to 6, by the judge",
}

PUBLISHED = {"PAS": 4.41, "few-shot": 5.96, "DPO": 7.45, "PPO": 7.62}
"""The errors that the paper reports of Llama-3-8B on PAPI's test set, traits summed (arXiv 2408.11779, Table 1)."""


class Figures:
    """Turns the readings of all conditions into the report's numbers."""

    def __init__(self, sheets: Sequence[Sheet], inventory: Inventory, seed: int) -> None:
        self.sheets = sheets
        self.inventory = inventory
        self.bootstrap = Bootstrap.draw(len(sheets), seed)
        self.rows = np.array([sheet.held_out for sheet in sheets])
        self.answers = np.array([sheet.subject.agreement for sheet in sheets])
        self.signs = np.array([item.sign for item in inventory.items])
        self.traits = trait_masks(inventory)
        self.usual, self.usual_measured = usual_answers(sheets, inventory)
        self.deviation = np.where(self.rows, self.answers - self.usual, np.nan)

    def conditions(self, readings: Mapping[str, Readings], shown: Sequence[str]) -> dict[str, Any]:
        """The report's ``conditions``; differences are paired, subject by subject."""
        plain = readings[PLAIN]
        measured = {name: dict(self._measures(own, plain)) for name, own in readings.items()}
        return {
            name: {**figures, "traits": self._trait_estimates(readings[name], plain)}
            for name, figures in compared(measured, self.bootstrap).items()
            if name in shown
        }

    def baselines(self) -> dict[str, Any]:
        """What can be had without a model: a constant, the subject's own means, everybody's mean."""
        constant = self._best_constant()
        guesses = {
            "always-3": ("the middle of the scale", np.full(self.rows.shape, 3.0)),
            "constant": (
                "the constant nearest to all training answers"
                + ("" if np.isnan(constant) else f", {constant:g}"),
                np.full(self.rows.shape, constant),
            ),
            "own-mean": ("the subject's mean training answer", self._own_mean()),
            "own-trait-means": (
                "the subject's training trait means, keyed",
                self._own_traits(np.mean),
            ),
            "own-trait-medians": (
                "the subject's training trait medians, keyed",
                self._own_traits(np.median),
            ),
            "usual": (
                "the mean answer of the other subjects"
                if self.usual_measured
                else "the typical mean of the item's trait",
                self.usual,
            ),
        }
        baselines = {}
        for name, (text, guess) in guesses.items():
            measured = dict(self._errors(guess))
            if name == "own-trait-means":
                change = ms.centred(guess) if self.usual_measured else guess - self.usual
                measured |= dict(self._alignments(change))
            baselines[name] = {
                "description": text,
                "measures": {
                    key: measured_json(one, self.bootstrap) for key, one in measured.items()
                },
            }
        return baselines

    def subjects(self) -> list[dict[str, Any]]:
        """Sizes of the split, and trait scores 1..5: held out (target), training, and usual."""
        usual = {
            trait: ms.keyed_mean(self.usual, self.rows, mask, self.signs)
            for trait, mask in self.traits.items()
        }
        rows = []
        for place, sheet in enumerate(self.sheets):
            target = trait_means(sheet, self.inventory, sheet.held_out)
            train = trait_means(sheet, self.inventory, sheet.train)
            rows.append(
                {
                    "id": sheet.subject.id,
                    "train_items": int(sheet.train.sum()),
                    "held_out_items": int(sheet.held_out.sum()),
                    "seen_in_fitting": sheet.seen,
                    "traits": {
                        trait: {
                            "target": known_number(target.get(trait)),
                            "train": known_number(train.get(trait)),
                            "usual": known_number(usual[trait][place]),
                        }
                        for trait in self.traits
                    },
                }
            )
        return rows

    def _measures(self, steered: Readings, plain: Readings) -> Iterator[tuple[str, Measured]]:
        if steered.statements is not None and plain.statements is not None:
            change = steered.statements - plain.statements
            yield from self._alignments(change)
            if len(self.sheets) >= 2:
                own = ms.centred(change) if self.usual_measured else change
                told = ms.calibrated(own, self.deviation, self.usual, self.rows)
                yield from self._errors(told)
        if steered.perplexity is not None and plain.perplexity is not None:
            yield "perplexity_ratio", self._mean(steered.perplexity / plain.perplexity)

    def _alignments(self, change: Reals) -> Iterator[tuple[str, Measured]]:
        alignment = ms.alignment(change, self.deviation, self.rows)
        yield "alignment", self._mean(alignment)
        if self.usual_measured:
            centred = ms.alignment(ms.centred(change), self.deviation, self.rows)
            yield "alignment_centred", self._mean(centred)
        ranks = self._ranks(change, alignment)
        yield "rank", self._mean(ranks)
        yield "followed", self._mean(np.where(np.isfinite(ranks), ranks <= RARE, np.nan))
        yield "positive", self._mean(np.where(np.isfinite(alignment), alignment > 0, np.nan))
        if len(self.sheets) >= 2:
            pairs = ms.identification(change, self.deviation, self.rows)
            known = np.isfinite(pairs)
            sums = np.where(known, pairs, 0.0).sum(1)
            values = np.where(known.any(1), sums / np.maximum(known.sum(1), 1), np.nan)
            estimate = self.bootstrap.pair_mean(pairs)
            yield "identification", Measured(values, estimate, pairs=pairs)

    def _ranks(self, change: Reals, alignment: Reals) -> Reals:
        """Where each subject stands among strangers: float64 [S]."""
        if len(self.sheets) >= MIN_STRANGERS:
            return ms.ranks(change, self.deviation, self.rows)
        people = self.inventory.people
        lines = zip(change, self.rows & np.isfinite(change), alignment, strict=True)
        return np.array([people.rank(*line) if np.isfinite(line[2]) else np.nan for line in lines])

    def _errors(self, predicted: Reals) -> Iterator[tuple[str, Measured]]:
        errors = ms.trait_errors(predicted, self.answers, self.rows, self.traits)
        total = ms.summed(errors)
        yield "error", Measured(total, self.bootstrap.mean(total), traits=errors)

    def _trait_estimates(self, steered: Readings, plain: Readings) -> dict[str, Any]:
        """What each subject's traits look like under a condition; see docs/evaluation.md."""
        traits: dict[str, Any] = {}
        for trait, mask in self.traits.items():
            values: dict[str, Reals] = {}
            if steered.statements is not None and plain.statements is not None:
                change = steered.statements - plain.statements
                nats = ms.keyed_difference(change, self.rows, mask, self.signs)
                usual = ms.keyed_mean(self.usual, self.rows, mask, self.signs)
                shift = 4 / (1 + np.exp(-np.clip(nats, -50, 50))) - 2
                values = {"nats": nats, "from_statements": np.clip(usual + shift, 1, 5)}
            traits[trait] = {name: [known_number(x) for x in line] for name, line in values.items()}
        return traits

    def _mean(self, values: Reals) -> Measured:
        values = np.asarray(values, dtype=np.float64)
        return Measured(values, self.bootstrap.mean(values))

    def _training(self, values: Callable[[Sheet], Reals]) -> Reals:
        return np.array([values(sheet) for sheet in self.sheets])

    def _best_constant(self) -> float:
        """NaN where there are no training answers."""
        answers = np.concatenate([sheet.subject.agreement[sheet.train] for sheet in self.sheets])
        if not len(answers):
            return float("nan")
        return float(np.argmin([np.abs(answers - value).mean() for value in range(1, 6)]) + 1)

    def _own_mean(self) -> Reals:
        def mean(sheet: Sheet) -> Reals:
            own = sheet.subject.agreement[sheet.train]
            return np.full(len(sheet.train), own.mean() if len(own) else np.nan)

        return self._training(mean)

    def _own_traits(self, middle: Callable[[Reals], Any]) -> Reals:
        def means(sheet: Sheet) -> Reals:
            own = trait_means(sheet, self.inventory, sheet.train, middle)
            scores = np.array([own.get(item.trait, np.nan) for item in self.inventory.items])
            return np.where(self.signs > 0, scores, 6 - scores)

        return self._training(means)


def compared(
    measured: Mapping[str, Mapping[str, Measured]], bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """Condition -> its measures, and what they are more than plain's and than palign's, JSON-ready."""
    return {
        name: {
            "description": CONDITIONS[name].description,
            "measures": {key: measured_json(figure, bootstrap) for key, figure in own.items()},
            "against_plain": differences(own, measured.get(PLAIN, {}), bootstrap),
            "against_palign": differences(own, measured.get(PALIGN, {}), bootstrap),
        }
        for name, own in measured.items()
    }
