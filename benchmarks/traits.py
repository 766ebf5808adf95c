"""What trait values do: dose and response on held-out statements, trait by trait.

    python benchmarks/traits.py [--model NAME] [--heads K]

Directions come from the shipped adjectives and statements alone; the 120 statements of the built-in
inventory are held out. Every cell is of real forward passes, and alpha is not held back by the
perplexity bound, so that the table shows where language breaks. Prints the tables of docs/experiments/trait-dose.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from palign_fit.methods.traits import TraitFitter
from palign_fit.model.cache import Cache, ModelCache, default_folder
from palign_fit.model.model import open_model

from vllm_palign.directions.sliders import of_values, trait_effects, wanted_alpha
from vllm_palign.directions.traits import NAMES, TRAITS

MODEL = Path(__file__).resolve().parent.parent / ".demo" / "SmolLM2-135M-Instruct"
DOSES = (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0)
BREAKING = (2.0, 3.0, 4.0, 6.0, 9.0)
"""Perplexity only, beyond what the command takes, mean over traits and both signs."""


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--model", default=str(MODEL))
    arguments.add_argument("--heads", type=int, default=24)
    given = arguments.parse_args()
    model = open_model(given.model)
    fitter = TraitFitter(model, given.heads, kept=ModelCache.of(model, Cache(default_folder())))
    budget, baseline = fitter.budget, fitter.baseline
    assert baseline is not None
    effects = np.zeros((len(TRAITS), len(DOSES), len(TRAITS)))
    ratios = np.zeros((len(TRAITS), 2, len(BREAKING)))
    for place, trait in enumerate(TRAITS):
        for side, sign in enumerate((-1.0, 1.0)):
            heads, disturbance, _ = of_values(fitter.directions.traits, {trait: sign})
            free, _ = budget.checked(heads, budget.alpha(disturbance), fitter.directions.reach)
            unit = wanted_alpha(free, {trait: sign})
            for at, dose in enumerate(DOSES):
                if dose * sign > 0:
                    change = baseline.change(heads, abs(dose) * unit, fitter.every)
                    found = trait_effects(change, fitter.directions.inventory)
                    effects[place, at] = [found[one] for one in TRAITS]
            for at, dose in enumerate(BREAKING):
                perplexity = budget.chats.under(heads, dose * unit)
                ratios[place, side, at] = perplexity / budget.plain
    own = effects[np.arange(len(TRAITS)), :, np.arange(len(TRAITS))]
    print(f"{model.base_model}, {given.heads} heads\n")
    _table(
        "effect on its own trait, nats a token",
        [*(f"{dose:+g}" for dose in DOSES), "Spearman"],
        [[*(f"{value:+.3f}" for value in row), f"{_spearman(row):.2f}"] for row in own],
    )
    slopes = np.tensordot(effects, np.array(DOSES), axes=(1, 0)) / np.square(DOSES).sum()
    _table(
        "effect a standard deviation, on",
        list(TRAITS),
        [[f"{value:+.3f}" for value in row] for row in slopes],
    )
    _table(
        "perplexity / plain, mean of - and +",
        [f"{dose:g}" for dose in BREAKING],
        [[f"{value:.2f}" for value in row] for row in ratios.mean(1)],
    )


def _spearman(effects: np.ndarray) -> float:
    """Rank correlation of DOSES, which rise, and ``effects`` [D]."""
    ranks = np.argsort(np.argsort(effects))
    return float(np.corrcoef(np.arange(len(ranks)), ranks)[0, 1])


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Markdown, one row a trait."""
    print(f"| {title} | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, row in zip(NAMES, rows, strict=True):
        print(f"| {name} | " + " | ".join(row) + " |")
    print()


if __name__ == "__main__":
    main()
