"""How probable the model finds statements and running text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from palign_fit.model.activations import run_batches

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel


def statement_loglik(
    model: OpenedModel, prefix: Sequence[int], statements: Sequence[Sequence[int]]
) -> npt.NDArray[np.float64]:
    """Mean log-likelihood per token of each statement after ``prefix``: float64 [N], nats."""
    import torch

    result = np.zeros(len(statements))
    for batch in run_batches(model, prefix, statements, logits=True):
        logp = batch.logits.float().log_softmax(-1).gather(2, batch.ids[:, :, None])[:, :, 0]
        real = torch.arange(batch.ids.shape[1], device=model.device) < batch.lengths[:, None]
        mean = torch.where(real, logp, 0.0).double().sum(1) / batch.lengths
        result[batch.rows] = mean.cpu().numpy()
    return result


def perplexity(model: OpenedModel, text: str) -> float:
    """Perplexity of ``text`` without any chat template: exp of the mean negative log-likelihood."""
    import torch

    ids = torch.tensor([model.tokenizer(text)["input_ids"]], device=model.device)
    with torch.inference_mode():
        logits = model.model(input_ids=ids, use_cache=False).logits.float()
        logp = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])
    return math.exp(-float(logp.double().mean()))
