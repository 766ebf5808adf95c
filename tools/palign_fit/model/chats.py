"""How far ordinary chats move: what says how strongly a model can be steered.

Neutral text without a chat around it misses most: two personas under which it stays equally probable may move chats
sevenfold (docs/experiments/alpha.md). So a model's own expectations in a few answers are measured, token by token, plain and
steered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from palign_fit.errors import FitError
from palign_fit.model import prompts
from palign_fit.model.continuations import Batch, Prefix, batches
from palign_fit.model.steer import steered_by

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel
    from vllm_palign.directions.basis import SteeredHeads


@dataclass(frozen=True, eq=False)
class _Chat:
    """An answer after its question, which is read plainly; ``expected`` float32 [T, V] what the plain model expects at
    each of the answer's tokens, probabilities."""

    prefix: Prefix
    answer: Batch
    expected: Any


@dataclass(frozen=True, eq=False)
class Chats:
    """``plain``: perplexity of what the plain model expects, to itself."""

    model: OpenedModel
    chats: Sequence[_Chat]
    plain: float

    @classmethod
    def read(cls, model: OpenedModel) -> Chats:
        """What the plain model expects; nothing may be steered meanwhile. Raises FitError where that is not finite."""
        import torch

        chats = []
        for question, answer in prompts.CHATS:
            prefix = Prefix(model, prompts.chat_prefix(model.tokenizer, question))
            (batch,) = batches([prompts.continuation(model.tokenizer, answer)], model.device)
            with torch.inference_mode():
                expected = prefix.run(batch)[0].float().softmax(-1)
            chats.append(_Chat(prefix, batch, expected))
        plain = _perplexity(chats)
        if not math.isfinite(plain):
            raise FitError(f"{model.base_model}: gives NaN or Inf likelihoods; try --dtype float32")
        return cls(model, chats, plain)

    def perplexity(self) -> float:
        """Perplexity of what the plain model expects, to the model as it is steered now: ``plain`` times exp of the
        mean divergence of the two, KL(plain || steered) in nats a token. NaN where the model gives NaN."""
        return _perplexity(self.chats)

    def under(self, heads: SteeredHeads, alpha: float) -> float:
        """``perplexity`` under ``heads`` at ``alpha``."""
        with steered_by(self.model, heads.layers, heads.heads, np.float32(alpha) * heads.offsets):
            return self.perplexity()


def _perplexity(chats: Sequence[_Chat]) -> float:
    import torch

    total, tokens = 0.0, 0
    with torch.inference_mode():
        for chat in chats:
            found = chat.prefix.run(chat.answer)[0].float().log_softmax(-1)
            # What is expected by nobody does not count, though its logarithm be minus infinity.
            surprise = torch.where(chat.expected > 0, -chat.expected * found, 0.0).sum(-1)
            total += float(surprise.double().sum())
            tokens += len(surprise)
    return math.exp(min(total / tokens, 700.0))
