"""How the likelihood of a text answers to steering: gradients instead of trial and error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from palign_fit.arrays import Activations
from palign_fit.model.continuations import Batch, Prefix, batches
from palign_fit.model.steer import before_projections

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel


@dataclass(frozen=True, eq=False)
class Gradients:
    """``gradients`` float32 [N, L, H, D]; ``outputs`` float32 [N, L, H, D], see ``read_gradients``."""

    gradients: Activations
    outputs: Activations


def read_gradients(
    model: OpenedModel,
    prefix: Prefix,
    continuations: Sequence[Sequence[int]],
    tick: Callable[[int], None] = lambda _: None,
) -> Gradients:
    """What an offset on each head does to the likelihood of each continuation, to first order.

    A gradient is of the mean log-likelihood per token (nats) with respect to an offset (activation
    units) added to every token of the continuation. The prefix is run once, unsteered: with it the
    gradient costs six times as much and predicts no better. ``outputs`` are the head outputs at the
    continuation's last token. ``tick`` hears how many continuations each batch held.
    """
    heads = (model.num_layers, model.num_heads, model.head_dim)
    found = Gradients(
        np.zeros((len(continuations), *heads), np.float32),
        np.zeros((len(continuations), *heads), np.float32),
    )
    frozen = [weight for weight in model.model.parameters() if weight.requires_grad]
    # Only the offsets need gradients; the weights' would cost as much again.
    for weight in frozen:
        weight.requires_grad_(False)
    try:
        for batch in batches(continuations, model.device):
            gradients, outputs = _of_batch(model, prefix, batch)
            found.gradients[batch.rows] = gradients.reshape(-1, *heads)
            found.outputs[batch.rows] = outputs.reshape(-1, *heads)
            tick(len(batch.rows))
    finally:
        for weight in frozen:
            weight.requires_grad_(True)
    return found


def _of_batch(model: OpenedModel, prefix: Prefix, batch: Batch) -> tuple[Activations, Activations]:
    """Gradients and outputs of one batch, each float32 [B, L, H * D]."""
    import torch

    width = model.num_heads * model.head_dim
    offsets = torch.zeros(
        model.num_layers, len(batch.rows), 1, width, device=model.device, requires_grad=True
    )
    outputs: dict[int, Any] = {}

    def steer(layer: int, value: Any) -> Any:
        outputs[layer] = value.detach()[batch.last].float()
        return value + offsets[layer].to(value.dtype)

    with before_projections(model, steer):
        logits = prefix.run(batch).float()
    chosen = logits.gather(2, batch.ids[:, :, None])[:, :, 0] - logits.logsumexp(-1)
    mean = (chosen * batch.real).sum(1) / batch.lengths
    (gradient,) = torch.autograd.grad(mean.sum(), offsets)
    last = torch.stack([outputs[layer] for layer in range(model.num_layers)], 1)
    return gradient[:, :, 0].transpose(0, 1).float().cpu().numpy(), last.cpu().numpy()
