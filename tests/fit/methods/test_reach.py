"""How much of what perplexity allows is taken."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from palign_fit.inputs.answers import Subject
from palign_fit.methods.palign import reach
from palign_fit.methods.palign.fitter import PalignFitter
from palign_fit.methods.palign.reach import REACHES, longest
from palign_fit.methods.settings import Settings
from palign_fit.methods.traits import TraitFitter
from palign_fit.model.cache import Cache, ModelCache

from tests.fit.conftest import answer_sheet
from vllm_palign.directions.basis import SteeredHeads
from vllm_palign.directions.inventory import Inventory, Item
from vllm_palign.directions.numbers import Mask
from vllm_palign.directions.traits import TRAITS


@pytest.mark.parametrize(
    ("carried", "reach"),
    [
        ((0.318, 0.32, 0.30), 1.0),  # all alike: the whole alpha
        ((0.26, 0.308, 0.31), 0.5),  # the longest that is as good as any
        ((0.20, 0.25, 0.31), 0.25),
        ((0.30, 0.20, 0.10), 1.0),
        ((0.01, 0.05, 0.10), 1.0),  # chance
        ((-0.3, -0.2, -0.1), 1.0),
    ],
)
def test_the_longest_reach_that_carries_about_as_well_as_any(
    carried: Sequence[float], reach: float
) -> None:
    assert longest(np.tile(carried, (5, 1)), 120) == reach


def test_what_a_model_bears_is_measured_once_for_every_inventory_people_and_check(
    tiny: Any, inventory: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--no-check`` and another inventory find it done, and so does ``traits``."""
    kept = ModelCache.of(tiny, Cache(tmp_path))
    every = np.ones(120, bool)
    first = PalignFitter(tiny, inventory, every, Settings(heads=5), kept)
    monkeypatch.setattr(reach, "carried", None)
    monkeypatch.setattr(reach.TextBudget, "measure", None)
    texts = [item.text for item in inventory.items[:40]]
    own = Inventory(
        "own",
        tuple(
            Item(f"x{n}", f"{text} at home", "OCEAN"[n % 5], "f", 1 - 2 * (n % 2))
            for n, text in enumerate(texts)
        ),
    )
    for other, used, settings in (
        (inventory, every, Settings(heads=5, check=False)),
        (inventory, np.arange(120) > 3, Settings(heads=5, seed=3)),
        (own, np.ones(40, bool), Settings(heads=5, check=False)),
    ):
        again = PalignFitter(tiny, other, used, settings, kept)
        assert (again.directions.reach, again.budget) == (first.directions.reach, first.budget)
    TraitFitter(tiny, 5, kept=kept)
    with pytest.raises(TypeError):
        PalignFitter(tiny, inventory, every, Settings(heads=4), kept)


def test_a_model_that_turns_back_early_is_steered_less(
    tiny: Any, inventory: Inventory, kept: ModelCache
) -> None:
    """Items follow up to a quarter of alpha, then all move alike, whoever it is."""
    every = np.ones(120, bool)
    whole = PalignFitter(tiny, inventory, every, Settings(heads=5), kept)
    keys = np.array(
        [[item.sign * (item.trait == trait) for trait in TRAITS] for item in inventory.items], float
    )

    class Bent:
        def change(self, heads: SteeredHeads, alpha: float, rows: Mask) -> np.ndarray:
            for blind in whole.directions.blind:
                for someone in blind.typical():
                    if (someone.steering.offsets == heads.offsets).all():
                        part = alpha / whole.budget.alpha(someone.disturbance)
                        trait = someone.sign * keys[:, someone.trait]
                        return np.asarray((trait + (part > 0.3) * 20 * keys[:, 0] ** 2)[rows])
            raise AssertionError("none of the typical people")

    bent: Any = Bent()
    carried = reach.carried(bent, whole.budget, whole.directions.blind, whole.directions.folds)
    assert carried.shape == (5, len(REACHES)) and carried[:, 2] == pytest.approx(np.ones(5))
    assert carried[:, :2].max() < 0.6
    quarter = copy.copy(whole)
    quarter.directions = dataclasses.replace(whole.directions, reach=longest(carried, 120))
    assert quarter.directions.reach == 0.25
    whole.directions = dataclasses.replace(whole.directions, reach=1.0)
    ann = Subject(
        "ann", np.array([np.nan if v is None else v for v in answer_sheet(inventory, 1).values()])
    )
    full, short = whole.fit(ann), quarter.fit(ann)
    assert short.alpha == pytest.approx(full.alpha / 4, rel=0.01)
    assert (short.offsets == full.offsets).all()
    assert full.fit["alpha_from"] == "perplexity"
    assert short.fit["alpha_from"].startswith("0.25 x what perplexity allows")


def test_who_gives_alpha_does_not_wait_for_what_would_choose_it(
    tiny: Any, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "carried", None)
    every = np.ones(120, bool)
    given = Settings(heads=5, alpha=2.0)
    assert PalignFitter(tiny, inventory, every, given).directions.reach == 1.0
    with pytest.raises(TypeError):
        PalignFitter(tiny, inventory, every, Settings(heads=5))
