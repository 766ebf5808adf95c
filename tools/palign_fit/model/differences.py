"""How far what follows a text moves, token by token: divergence of the model's distribution, and its first choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from palign_fit.model.rows import Dose, Rows, Tokens
from vllm_palign.directions.numbers import Reals

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel

_MOST = 2**26
"""Probabilities of one batch."""


def differences(
    model: OpenedModel,
    plain: Tokens,
    answer: Tokens,
    others: Sequence[tuple[Tokens, Dose]],
) -> Reals:
    """``answer`` after the prompt ``plain`` against the same after other prompts, steered from their last token on.

    Per other, means over the answer's tokens: KL(plain || other) in nats, and the share where both find the same
    token likeliest: float64 [N, 2]. Prompts have two tokens or more, the answer one.
    """

    def read(prompts: Sequence[Tokens], doses: Sequence[Dose]) -> list[Any]:
        rows = Rows.of(model, [prompt[:-1] for prompt in prompts])
        rows.steer(doses)
        logits = rows.put([[prompt[-1], *answer[:-1]] for prompt in prompts], keep=len(answer))
        return [line.float().log_softmax(-1) for line in logits]

    (usual,) = read([plain], [(None, 0.0)])
    weight, chosen = usual.exp(), usual.argmax(-1)
    together = max(1, _MOST // usual.numel())
    found = []
    for start in range(0, len(others), together):
        batch = others[start : start + together]
        for line in read([prompt for prompt, _ in batch], [dose for _, dose in batch]):
            apart = (weight * (usual - line)).sum(-1).double().mean().clamp(min=0)
            same = (line.argmax(-1) == chosen).double().mean()
            found.append([float(apart), float(same)])
    return np.array(found).reshape(-1, 2)
