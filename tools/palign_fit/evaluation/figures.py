"""Readings and answers to the figures of the report: everything in the JSON output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palign_fit.arrays import Reals
from palign_fit.evaluation import measures as ms
from palign_fit.evaluation.conditions import CONDITIONS, PALIGN, PLAIN
from palign_fit.evaluation.intervals import Bootstrap, Estimate
from palign_fit.evaluation.readings import Readings
from palign_fit.evaluation.split import Sheet, trait_masks, trait_means, usual_answers
from palign_fit.inputs.inventory import Inventory

MEASURE_TEXT = {
    "alignment": "correlation of the change in log-likelihood of unseen statements with the answers "
    "to them, both from the usual",
    "alignment_centred": "the same after taking off the mean change over the other subjects",
    "positive": "share of subjects with alignment above 0",
    "identification": "share of pairs of subjects told apart (chance 0.5)",
    "error_letters": "absolute error of the expected answer, by option letter, traits summed",
    "error_letters_argmax": "absolute error of the likeliest option letter, traits summed",
    "error_texts": "absolute error of the expected answer, by option text, traits summed",
    "error_texts_argmax": "absolute error of the likeliest option text, traits summed",
    "perplexity_ratio": "perplexity of neutral text / plain",
    "error": "absolute error, traits summed",
    "rating": "how well answers fit the person, 1 to 6, by the judge",
}


@dataclass(frozen=True, eq=False)
class Measured:
    """One measure of one condition.

    ``values`` float64 [S], one a subject; ``estimate`` over subjects; ``pairs`` [S, S] where the
    measure compares subjects; ``traits``: the same by trait.
    """

    values: Reals
    estimate: Estimate
    pairs: Reals | None = None
    traits: Mapping[str, Reals] | None = None


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
        measured = {name: dict(self._measures(one, plain)) for name, one in readings.items()}
        return {
            name: {
                "description": CONDITIONS[name].description,
                "measures": {
                    key: measured_json(one, self.bootstrap) for key, one in measured[name].items()
                },
                "against_plain": differences(measured[name], measured[PLAIN], self.bootstrap),
                "against_palign": differences(
                    measured[name], measured.get(PALIGN, {}), self.bootstrap
                ),
                "traits": self._trait_estimates(readings[name], plain),
            }
            for name in readings
            if name in shown
        }

    def baselines(self) -> dict[str, Any]:
        """What can be had without a model: a constant, the subject's own means, everybody's mean."""
        constant = self._best_constant()
        guesses = {
            "constant": (
                f"always {constant:g}, the constant nearest to all training answers",
                np.full(self.rows.shape, constant),
            ),
            "own-mean": ("the subject's mean training answer", self._own_mean()),
            "own-trait-means": ("the subject's training trait means, keyed", self._own_traits()),
        }
        if self.usual_measured:
            guesses["usual"] = ("the mean answer of the other subjects", self.usual)
        found = {}
        for name, (text, guess) in guesses.items():
            measured = dict(self._errors("error", guess))
            if name == "own-trait-means":
                change = ms.centred(guess) if self.usual_measured else guess - self.usual
                measured |= dict(self._alignments(change))
            found[name] = {
                "description": text,
                "measures": {
                    key: measured_json(one, self.bootstrap) for key, one in measured.items()
                },
            }
        return found

    def subjects(self) -> list[dict[str, Any]]:
        """Sizes of the split, and trait scores 1..5: held out (target), training, and usual."""
        usual = {
            trait: ms.keyed_mean(self.usual, self.rows, mask, self.signs)
            for trait, mask in self.traits.items()
        }
        found = []
        for at, sheet in enumerate(self.sheets):
            target = trait_means(sheet, self.inventory, sheet.held_out)
            train = trait_means(sheet, self.inventory, sheet.train)
            found.append(
                {
                    "id": sheet.subject.id,
                    "train_items": int(sheet.train.sum()),
                    "held_out_items": int(sheet.held_out.sum()),
                    "seen_in_fitting": sheet.seen,
                    "traits": {
                        trait: {
                            "target": _number(target.get(trait)),
                            "train": _number(train.get(trait)),
                            "usual": _number(usual[trait][at]),
                        }
                        for trait in self.traits
                    },
                }
            )
        return found

    def _measures(self, one: Readings, plain: Readings) -> Iterator[tuple[str, Measured]]:
        if one.statements is not None and plain.statements is not None:
            yield from self._alignments(one.statements - plain.statements)
        for name, options in (("letters", one.letters), ("texts", one.texts)):
            if options is not None:
                yield from self._errors(f"error_{name}", ms.expected_answer(options))
                yield from self._errors(f"error_{name}_argmax", ms.likeliest_answer(options))
        if one.perplexity is not None and plain.perplexity is not None:
            yield "perplexity_ratio", self._mean(one.perplexity / plain.perplexity)

    def _alignments(self, change: Reals) -> Iterator[tuple[str, Measured]]:
        found = ms.alignment(change, self.deviation, self.rows)
        yield "alignment", self._mean(found)
        if self.usual_measured:
            centred = ms.alignment(ms.centred(change), self.deviation, self.rows)
            yield "alignment_centred", self._mean(centred)
        yield "positive", self._mean(np.where(np.isfinite(found), found > 0, np.nan))
        if len(self.sheets) >= 2:
            pairs = ms.identification(change, self.deviation, self.rows)
            known = np.isfinite(pairs)
            sums = np.where(known, pairs, 0.0).sum(1)
            values = np.where(known.any(1), sums / np.maximum(known.sum(1), 1), np.nan)
            estimate = self.bootstrap.pair_mean(pairs)
            yield "identification", Measured(values, estimate, pairs=pairs)

    def _errors(self, name: str, predicted: Reals) -> Iterator[tuple[str, Measured]]:
        errors = ms.trait_errors(predicted, self.answers, self.rows, self.traits)
        total = ms.summed(errors)
        yield name, Measured(total, self.bootstrap.mean(total), traits=errors)

    def _trait_estimates(self, one: Readings, plain: Readings) -> dict[str, Any]:
        """What each subject's traits look like under a condition; see docs/evaluation.md."""
        found: dict[str, Any] = {}
        for trait, mask in self.traits.items():
            values: dict[str, Reals] = {}
            if one.statements is not None and plain.statements is not None:
                change = one.statements - plain.statements
                nats = ms.keyed_difference(change, self.rows, mask, self.signs)
                usual = ms.keyed_mean(self.usual, self.rows, mask, self.signs)
                shift = 4 / (1 + np.exp(-np.clip(nats, -50, 50))) - 2
                values = {"nats": nats, "from_statements": np.clip(usual + shift, 1, 5)}
            for name, options in (("from_letters", one.letters), ("from_texts", one.texts)):
                if options is not None:
                    expected = ms.expected_answer(options)
                    values[name] = ms.keyed_mean(expected, self.rows, mask, self.signs)
            found[trait] = {name: [_number(x) for x in line] for name, line in values.items()}
        return found

    def _mean(self, values: Reals) -> Measured:
        values = np.asarray(values, dtype=np.float64)
        return Measured(values, self.bootstrap.mean(values))

    def _training(self, values: Callable[[Sheet], Reals]) -> Reals:
        return np.array([values(sheet) for sheet in self.sheets])

    def _best_constant(self) -> float:
        answers = np.concatenate([sheet.subject.agreement[sheet.train] for sheet in self.sheets])
        errors = [np.abs(answers - value).mean() if len(answers) else 0 for value in range(1, 6)]
        return float(np.argmin(errors) + 1)

    def _own_mean(self) -> Reals:
        def mean(sheet: Sheet) -> Reals:
            own = sheet.subject.agreement[sheet.train]
            return np.full(len(sheet.train), own.mean() if len(own) else np.nan)

        return self._training(mean)

    def _own_traits(self) -> Reals:
        def means(sheet: Sheet) -> Reals:
            own = trait_means(sheet, self.inventory, sheet.train)
            scores = np.array([own.get(item.trait, np.nan) for item in self.inventory.items])
            return np.where(self.signs > 0, scores, 6 - scores)

        return self._training(means)


def differences(
    one: Mapping[str, Measured], other: Mapping[str, Measured], bootstrap: Bootstrap
) -> dict[str, Any]:
    """``one`` minus ``other`` in every common measure, paired by subject, JSON-ready."""
    found = {}
    for key in one.keys() & other.keys():
        mine, theirs = one[key], other[key]
        if mine.pairs is not None and theirs.pairs is not None:
            estimate = bootstrap.pair_mean(mine.pairs - theirs.pairs)
        else:
            estimate = bootstrap.mean(mine.values - theirs.values)
        found[key] = _estimate(estimate)
    return dict(sorted(found.items()))


def measured_json(one: Measured, bootstrap: Bootstrap) -> dict[str, Any]:
    """A measure JSON-ready: estimate, subjects, traits."""
    found = {**_estimate(one.estimate), "per_subject": [_number(x) for x in one.values]}
    if one.traits is not None:
        found["traits"] = {
            trait: _estimate(bootstrap.mean(values)) for trait, values in one.traits.items()
        }
    return found


def _estimate(one: Estimate) -> dict[str, Any]:
    return {
        "mean": _number(one.mean),
        "low": _number(one.low),
        "high": _number(one.high),
        "n": one.n,
    }


def _number(value: float | None) -> float | None:
    """Six significant digits; None for what is not a number, which JSON cannot hold."""
    return float(f"{value:.6g}") if value is not None and np.isfinite(value) else None
