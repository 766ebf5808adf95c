"""How the likelihood of a text answers to steering: gradients instead of trial and error."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from palign_fit.arrays import Activations

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel

BATCH = 32


@dataclass(frozen=True, eq=False)
class Gradients:
    """``gradients`` float32 [N, L, H, D]; ``outputs`` float32 [N, L, H, D], see ``read_gradients``."""

    gradients: Activations
    outputs: Activations


def read_gradients(
    model: OpenedModel,
    prefix: Sequence[int],
    continuations: Sequence[Sequence[int]],
    tick: Callable[[int], None] = lambda _: None,
) -> Gradients:
    """What an offset on each head does to the likelihood of each continuation, to first order.

    A gradient is of the mean log-likelihood per token (nats) with respect to an offset (activation
    units) added to every token of the continuation. The prefix is run once, unsteered: with it the
    gradient costs six times as much and predicts no better. ``outputs`` are the head outputs at the
    continuation's last token. ``tick`` hears how many continuations each batch held.
    """
    import torch

    heads = (model.num_layers, model.num_heads, model.head_dim)
    found = Gradients(
        np.zeros((len(continuations), *heads), np.float32),
        np.zeros((len(continuations), *heads), np.float32),
    )
    with torch.no_grad():
        start = torch.tensor([list(prefix)], device=model.device)
        first = model.model(input_ids=start, use_cache=True, logits_to_keep=1)
    frozen = [weight for weight in model.model.parameters() if weight.requires_grad]
    # Only the offsets need gradients; the weights' would cost as much again.
    for weight in frozen:
        weight.requires_grad_(False)
    try:
        # Sorting by length keeps padding small; ties keep the caller's order, so runs repeat.
        order = sorted(range(len(continuations)), key=lambda row: len(continuations[row]))
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            gradients, outputs = _batch(model, first, [continuations[row] for row in rows])
            found.gradients[rows] = gradients.reshape(len(rows), *heads)
            found.outputs[rows] = outputs.reshape(len(rows), *heads)
            tick(len(rows))
    finally:
        for weight in frozen:
            weight.requires_grad_(True)
    return found


def _batch(
    model: OpenedModel, first: Any, lines: Sequence[Sequence[int]]
) -> tuple[Activations, Activations]:
    """Gradients and outputs of one batch, each float32 [B, L, H * D]."""
    import torch

    device = model.device
    lengths = torch.tensor([len(line) for line in lines], device=device)
    ids = torch.zeros(len(lines), int(lengths.max()), dtype=torch.long, device=device)
    for row, line in enumerate(lines):
        ids[row, : len(line)] = torch.tensor(list(line))
    real = torch.arange(ids.shape[1], device=device) < lengths[:, None]
    width = model.num_heads * model.head_dim
    offsets = torch.zeros(model.num_layers, len(lines), 1, width, device=device, requires_grad=True)
    last = torch.arange(len(lines), device=device)
    outputs: dict[int, Any] = {}

    def steer(layer: int) -> Any:
        def add(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            outputs[layer] = args[0].detach()[last, lengths - 1].float()
            return (args[0] + offsets[layer].to(args[0].dtype), *args[1:])

        return add

    cache = copy.deepcopy(first.past_key_values)
    cache.batch_repeat_interleave(len(lines))
    prefix = cache.get_seq_length()
    handles = [
        module.register_forward_pre_hook(steer(layer))
        for layer, module in enumerate(model.projections)
    ]
    try:
        out = model.model(
            input_ids=ids,
            attention_mask=torch.cat([real.new_ones(len(lines), prefix), real], 1).long(),
            past_key_values=cache,
            use_cache=True,
        )
    finally:
        for handle in handles:
            handle.remove()
    head = first.logits[:, -1:].expand(len(lines), 1, -1)
    logits = torch.cat([head, out.logits[:, :-1]], 1).float()
    chosen = logits.gather(2, ids[:, :, None])[:, :, 0] - logits.logsumexp(-1)
    mean = (chosen * real).sum(1) / lengths
    (gradient,) = torch.autograd.grad(mean.sum(), offsets)
    read = torch.stack([outputs[layer] for layer in range(model.num_layers)], 1)
    return gradient[:, :, 0].transpose(0, 1).float().cpu().numpy(), read.cpu().numpy()
