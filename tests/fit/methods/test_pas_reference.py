"""The published method: labels, held-out answers, the search for alpha."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from palign_fit.errors import InputError
from palign_fit.inputs.answers import Subject
from palign_fit.methods.baseline import Baseline
from palign_fit.methods.pas_reference.fitter import GRID, HELD_OUT_FOLDS, choose_trial, search_alpha
from palign_fit.methods.pas_reference.letters import ReferenceMethod
from palign_fit.methods.settings import Settings

from tests.fit.conftest import answer_sheet, fit_personas
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.record import Trial

EVERY = np.ones(120, bool)


def subject(inventory: Inventory, seed: int, missing: int = 0) -> Subject:
    sheet = answer_sheet(inventory, seed, missing)
    return Subject("ann", np.array([np.nan if v is None else v for v in sheet.values()], float))


@pytest.fixture(scope="module")
def reference(tiny: Any, inventory: Inventory) -> ReferenceMethod:
    return ReferenceMethod.prepare(tiny, inventory, 0, lambda _: None)


@pytest.fixture(scope="module")
def baseline(tiny: Any, inventory: Inventory) -> Baseline:
    return Baseline.measure(tiny, inventory, EVERY)


def test_labels_are_agreement_with_the_text_whatever_the_key(reference: ReferenceMethod) -> None:
    sheet = np.full(120, np.nan)
    sheet[[0, 1, 30, 31]] = [5, 1, 4, 3]
    contrast = reference.contrast(Subject("x", sheet), EVERY)
    assert contrast.weights.tolist() == [1, -1, 1, -1, 1, -1]
    wanted = np.concatenate([reference.agree[[0, 1, 30]], reference.disagree[[0, 1, 30]]])
    assert (contrast.activations == wanted).all()
    assert (contrast.folds[:3] == contrast.folds[3:]).all()


def test_held_out_answers_never_reach_the_direction(
    reference: ReferenceMethod, inventory: Inventory
) -> None:
    ann = subject(inventory, 4)
    rows = np.arange(120) % 3 != 0
    other = Subject("ann", np.where(rows, ann.agreement, 6 - ann.agreement))
    one, two = reference.fit(ann, rows, 6), reference.fit(other, rows, 6)
    assert (one.layers == two.layers).all() and (one.offsets == two.offsets).all()


def test_alpha_is_measured_only_under_directions_that_did_not_see_the_item(
    baseline: Baseline, reference: ReferenceMethod, inventory: Inventory
) -> None:
    ann = subject(inventory, 5, missing=7)
    asked: list[np.ndarray[Any, Any]] = []
    measured: list[np.ndarray[Any, Any]] = []

    class Spy(ReferenceMethod):
        def fit(self, subject: Subject, rows: Any, count: int) -> Any:
            asked.append(rows)
            return super().fit(subject, rows, count)

    class Ruler(Baseline):
        def change(self, heads: Any, alpha: float, rows: Any) -> Any:
            measured.append(rows)
            return super().change(heads, alpha, rows)

    heads = reference.fit(ann, np.isfinite(ann.agreement), 4)
    chats: Any = SimpleNamespace(plain=10.0, under=lambda heads, alpha: 10.0)
    ruler, spy = Ruler(**vars(baseline)), Spy(**vars(reference))
    search_alpha(ruler, chats, spy, inventory, ann, heads, grid=[1.0], seed=0)
    assert len(asked) == len(measured) == HELD_OUT_FOLDS
    assert not any((fitted & held).any() for fitted, held in zip(asked, measured, strict=True))
    assert (np.sum(measured, axis=0) == np.isfinite(ann.agreement)).all()


def test_the_strongest_effect_within_the_perplexity_bound_wins() -> None:
    trials = [
        Trial(1, 0.1, 0.3, 0.1, 10), Trial(2, 0.3, 0.3, 0.1, 11.4), Trial(4, 0.9, 0.3, 0.1, 11.6)
    ]  # fmt: skip
    assert choose_trial(trials, 10).alpha == 2
    assert choose_trial(trials, 5).alpha == 1


def test_the_search_stops_after_the_first_alpha_beyond_the_bound(
    baseline: Baseline,
    reference: ReferenceMethod,
    inventory: Inventory,
) -> None:
    chats: Any = SimpleNamespace(plain=10.0, under=lambda heads, alpha: 10.0 + alpha)
    ann = subject(inventory, 6)
    heads = reference.fit(ann, EVERY, 4)
    trials = search_alpha(baseline, chats, reference, inventory, ann, heads, grid=GRID, seed=0)
    assert [trial.alpha for trial in trials] == [0.5, 1.0, 1.5, 2.0]


def test_a_subject_who_takes_no_side_is_refused(tiny: Any, inventory: Inventory) -> None:
    sheet = np.full(120, 3.0)
    sheet[:4] = 5
    with pytest.raises(InputError, match="4 answers other than 3"):
        next(fit_personas(tiny, inventory, [Subject("x", sheet)], Settings("pas-reference", 4)))
