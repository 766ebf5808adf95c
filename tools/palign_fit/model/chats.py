"""How far ordinary chats move, which says how strongly a model can be steered and, where names differ, which model personas
were fitted on.

Neutral text without a chat around it does not see it: it may get likelier while chats move (docs/experiments/alpha.md).
So a model's own expectations in a few answers are measured, token by token, plain and steered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from palign_fit.errors import FitError
from palign_fit.model import prompts
from palign_fit.model.continuations import Batch, Prefix, batches
from palign_fit.model.model import OpenedModel, model_dtype
from palign_fit.model.steer import steered_by
from vllm_palign.persona import Persona, model_name

if TYPE_CHECKING:
    from vllm_palign.directions.basis import SteeredHeads

_SAME, _SAME_ROUNDED = 1e-3, 1e-2
"""By how much the perplexity of chats may differ on one checkpoint, as a part of it: from one machine to
another, and from one dtype to another."""


@dataclass(frozen=True, eq=False)
class _Chat:
    """An answer after its question, which is read plainly; ``expected`` float32 [T, V] what the plain model expects at
    each of the answer's tokens, probabilities."""

    prefix: Prefix
    answer: Batch
    expected: Any


class Chats:
    """Read when they are first asked of, plainly."""

    def __init__(self, model: OpenedModel) -> None:
        self.model = model

    @cached_property
    def plain(self) -> float:
        """Perplexity of what the plain model expects, to itself. Raises FitError where it is not finite."""
        plain = _perplexity(self._read)
        if not math.isfinite(plain):
            name = self.model.base_model
            raise FitError(f"{name}: gives NaN or Inf likelihoods; try --dtype float32")
        return plain

    def under(self, heads: SteeredHeads | Persona, alpha: float) -> float:
        """Perplexity of what the plain model expects, to the model under ``heads`` at ``alpha``: ``plain`` times exp of
        the mean divergence of the two, KL(plain || steered) in nats a token. NaN where the model gives NaN."""
        read = self._read
        with steered_by(self.model, heads.layers, heads.heads, np.float32(alpha) * heads.offsets):
            return _perplexity(read)

    @cached_property
    def _read(self) -> list[_Chat]:
        import torch

        chats = []
        for question, answer in prompts.CHATS:
            prefix = Prefix(self.model, prompts.chat_prefix(self.model.tokenizer, question))
            line = prompts.continuation(self.model.tokenizer, answer)
            (batch,) = batches([line], self.model.device)
            with torch.inference_mode():
                expected = prefix.run(batch)[0].float().softmax(-1)
            chats.append(_Chat(prefix, batch, expected))
        return chats


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


def foreign_models(model: OpenedModel, personas: Sequence[Persona]) -> list[str]:
    """Names of the models that ``personas`` were fitted on and that are not ``model``, sorted.

    One checkpoint may lie under many paths. So a persona under another name still is of this model if it
    records the perplexity of chats that this model has.
    """
    others = [one for one in personas if model_name(one.base_model) != model_name(model.base_model)]
    if not others:
        return []
    plain = Chats(model).plain
    return sorted({model_name(one.base_model) for one in others if not _records(one, plain, model)})


def _records(persona: Persona, plain: float, model: OpenedModel) -> bool:
    recorded = persona.fit.get("perplexity_plain")
    if not isinstance(recorded, float) or not math.isfinite(plain):
        return False
    rounded = persona.fit.get("dtype") != model_dtype(model)
    return abs(recorded - plain) <= (_SAME_ROUNDED if rounded else _SAME) * plain
