"""What steering costs in ordinary chats."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from palign_fit.evaluation.speech.script import chats
from palign_fit.model import prompts
from palign_fit.model.chats import Chats, _perplexity
from palign_fit.model.continuations import Prefix, batches
from palign_fit.model.steer import steered_by

from tests.fit.conftest import HEAD_DIM
from vllm_palign.directions.basis import SteeredHeads

HEADS = SteeredHeads(
    np.array([0, 2], np.int32),
    np.array([1, 3], np.int32),
    np.random.default_rng(0).standard_normal((2, HEAD_DIM)).astype(np.float32),
    np.zeros(2),
)


def divergence(model: Any, alpha: float) -> float:
    """KL(plain || steered), mean over all tokens of all answers, from the definition."""
    import torch

    apart = []
    for question, answer in prompts.CHATS:
        prefix = Prefix(model, prompts.chat_prefix(model.tokenizer, question))
        (batch,) = batches([prompts.continuation(model.tokenizer, answer)], model.device)
        with torch.no_grad():
            plain = prefix.run(batch)[0].double().log_softmax(-1)
            with steered_by(model, HEADS.layers, HEADS.heads, np.float32(alpha) * HEADS.offsets):
                steered = prefix.run(batch)[0].double().log_softmax(-1)
        apart += (plain.exp() * (plain - steered)).sum(-1).tolist()
    return float(np.mean(apart))


def test_the_logarithm_of_the_ratio_is_the_divergence(tiny: Any) -> None:
    chats = Chats(tiny)
    assert 1 < chats.plain < math.inf
    assert chats.under(HEADS, 0.0) == chats.plain
    for alpha in (0.5, 2.0):
        cost = math.log(chats.under(HEADS, alpha) / chats.plain)
        assert cost == pytest.approx(divergence(tiny, alpha), rel=1e-3)
        assert cost > 0


def test_a_token_that_nobody_expects_does_not_count_and_nan_is_nan() -> None:
    import torch

    def perplexity(*logits: list[float]) -> float:
        said = [torch.tensor([[one]]) for one in logits]
        prefix: Any = SimpleNamespace(run=lambda _: said.pop(0))
        chat = SimpleNamespace(prefix=prefix, answer=None, expected=torch.tensor([[1.0, 0.0]]))
        return _perplexity([chat])  # type: ignore[list-item]

    assert perplexity([0.0, -math.inf]) == 1
    assert math.isnan(perplexity([math.nan, 0.0]))
    assert perplexity([-math.inf, 0.0]) > 1e300


def test_an_evaluation_asks_other_chats() -> None:
    assert not {question for question, _ in prompts.CHATS} & {chat.text for chat in chats()}
