"""Gradients in bfloat16 where the CPU is made for it; likelihoods and weights stay what they are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from palign_fit.methods.palign.sentence_gradients import SentenceGradients
from palign_fit.model import narrow
from palign_fit.model.model import OpenedModel, model_dtype, open_model

from vllm_palign.directions.inventory import Inventory


@pytest.fixture
def stored_narrow(tiny: Any, tmp_path: Path) -> Path:
    """A checkpoint of bfloat16 numbers, as most are."""
    copy.deepcopy(tiny.model).bfloat16().save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    return tmp_path


def opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, able: bool, **more: Any
) -> OpenedModel:
    monkeypatch.setattr(narrow, "has_bfloat16", lambda: able)
    return open_model(str(folder), device="cpu", **more)


def test_gradients_are_narrow_and_everything_else_is_wide(
    stored_narrow: Path, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(stored_narrow, monkeypatch, able=True)
    assert model_dtype(model) == "float32, gradients bfloat16"
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    few = np.arange(120) < 5
    found = SentenceGradients.read(model, inventory, few)
    assert model.model.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    wide = SentenceGradients.read(opened(stored_narrow, monkeypatch, able=False), inventory, few)
    one, other = found.gradients.ravel(), wide.gradients.ravel()
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert 0.99 < cosine < 1 - 1e-9
    again = SentenceGradients.read(model, inventory, few)
    assert (again.gradients == found.gradients).all()


def test_what_was_asked_for_or_would_lose_digits_stays_wide(
    stored_narrow: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in (
        opened(stored_narrow, monkeypatch, able=False),
        opened(stored_narrow, monkeypatch, able=True, dtype="float32"),
        opened(tiny_checkpoint, monkeypatch, able=True),  # holds numbers that bfloat16 does not
    ):
        assert model_dtype(model) == "float32"


def test_weights_come_back_when_a_stage_is_stopped(
    stored_narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(stored_narrow, monkeypatch, able=True)
    with pytest.raises(KeyboardInterrupt), narrow.computing_in(model.model, "bfloat16"):
        assert model.model.dtype == torch.bfloat16
        raise KeyboardInterrupt
    assert model.model.dtype == torch.float32


def test_a_weight_that_a_model_keeps_wider_stays_as_it_is(stored_narrow: Path) -> None:
    model = open_model(str(stored_narrow), device="cpu", dtype="bfloat16").model
    wide = next(model.parameters())
    wide.data = wide.data.float() + 1e-6
    before = wide.data.clone()
    with narrow.computing_in(model, ""):
        assert torch.equal(wide.data, before)
    assert wide.dtype == torch.float32 and torch.equal(wide.data, before)
