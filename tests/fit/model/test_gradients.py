from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from palign_fit.model import prompts
from palign_fit.model.continuations import Prefix, collect
from palign_fit.model.gradients import read_gradients
from palign_fit.model.model import wrap
from palign_fit.model.steer import steered_by

from tests.fit.conftest import HEAD_DIM, HEADS, LAYERS

TEXTS = ("I talk.", "I find good answers when a task is hard.", "I worry a lot.")


@pytest.fixture(scope="module")
def double(tiny: Any) -> Any:
    """The tiny model in float64, where finite differences are sharp."""
    return wrap(copy.deepcopy(tiny.model).double(), tiny.tokenizer, base_model="double")


def read(model: Any) -> tuple[list[int], list[list[int]]]:
    lines = [prompts.continuation(model.tokenizer, text) for text in TEXTS]
    return prompts.chat_prefix(model.tokenizer, prompts.OPENINGS[0]), lines


def loglik(model: Any, prefix: list[int], line: list[int], added: np.ndarray[Any, Any]) -> float:
    """Mean log-likelihood per token of ``line``, whose tokens alone are steered by [L, H, D]."""
    import torch

    layers, heads = np.divmod(np.arange(LAYERS * HEADS), HEADS)
    with torch.no_grad():
        first = model.model(torch.tensor([prefix]), use_cache=True)
        with steered_by(model, layers, heads, added.reshape(-1, HEAD_DIM)):
            rest = model.model(torch.tensor([line]), past_key_values=first.past_key_values)
        logits = torch.cat([first.logits[0, -1:], rest.logits[0, :-1]])
        found = logits.log_softmax(-1).gather(1, torch.tensor(line)[:, None])
    return float(found.mean())


def test_gradients_are_the_slope_of_the_likelihood_under_steering(double: Any) -> None:
    prefix, lines = read(double)
    gradients = read_gradients(double, Prefix(double, prefix), lines).gradients
    assert gradients.shape == (len(TEXTS), LAYERS, HEADS, HEAD_DIM)
    rng = np.random.default_rng(0)
    for row, line in enumerate(lines):
        for _ in range(4):
            # A power of two is the same number in float32, in which offsets are handed over.
            way = rng.choice([-1.0, 1.0], (LAYERS, HEADS, HEAD_DIM)) * 2.0**-9
            rise = loglik(double, prefix, line, way) - loglik(double, prefix, line, -way)
            assert 2 * (gradients[row] * way).sum() == pytest.approx(rise, rel=1e-3)


def test_outputs_are_the_head_outputs_at_the_last_token(tiny: Any) -> None:
    prefix, lines = read(tiny)
    heard: list[int] = []
    found = read_gradients(tiny, Prefix(tiny, prefix), lines, heard.append)
    assert np.allclose(found.outputs, collect(tiny, prefix, lines), atol=1e-5)
    assert sum(heard) == len(lines)


def test_the_model_is_left_as_it_was(tiny: Any) -> None:
    prefix, lines = read(tiny)
    read_gradients(tiny, Prefix(tiny, prefix), lines)
    assert all(weight.requires_grad for weight in tiny.model.parameters())
    assert all(weight.grad is None for weight in tiny.model.parameters())
    assert not any(module._forward_pre_hooks for module in tiny.projections)
