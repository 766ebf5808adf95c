"""Head outputs of continuations: what the attention output projection reads at their last token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from palign_fit.arrays import Activations

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel

BATCH = 32


@dataclass(frozen=True)
class Batch:
    """Continuations of one prefix, right-padded: causal attention never sees the padding.

    ``rows`` places in the caller's list; ``lengths`` int64 [B] tokens of each continuation;
    ``ids`` int64 [B, T]; ``logits`` [B, T, V] at the T positions that predict ``ids``, or None.
    """

    rows: list[int]
    lengths: Any
    ids: Any
    logits: Any


def run_batches(
    model: OpenedModel,
    prefix: Sequence[int],
    continuations: Sequence[Sequence[int]],
    *,
    logits: bool,
) -> Iterator[Batch]:
    """Forward passes over ``continuations``, reading the common ``prefix`` only once."""
    import torch

    device = model.device
    with torch.inference_mode():
        start = torch.tensor([list(prefix)], device=device)
        first = model.model(input_ids=start, use_cache=True, logits_to_keep=1)
        # Sorting by length keeps padding small; ties keep the caller's order, so runs repeat.
        order = sorted(range(len(continuations)), key=lambda row: len(continuations[row]))
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            lengths = torch.tensor([len(continuations[row]) for row in rows], device=device)
            ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long, device=device)
            for line, row in enumerate(rows):
                ids[line, : len(continuations[row])] = torch.tensor(list(continuations[row]))
            real = torch.arange(ids.shape[1], device=device) < lengths[:, None]
            cache = copy.deepcopy(first.past_key_values)
            cache.batch_repeat_interleave(len(rows))
            out = model.model(
                input_ids=ids,
                attention_mask=torch.cat([start.new_ones(len(rows), len(prefix)), real], dim=1),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=0 if logits else 1,
            )
            scored = None
            if logits:
                head = first.logits[:, -1:].expand(len(rows), 1, -1)
                scored = torch.cat([head, out.logits[:, :-1]], dim=1)
            yield Batch(rows=rows, lengths=lengths, ids=ids, logits=scored)


def collect(
    model: OpenedModel,
    prefix: Sequence[int],
    continuations: Sequence[Sequence[int]],
    tick: Callable[[int], None] = lambda _: None,
) -> Activations:
    """Head outputs at the last token of each continuation, float32 [N, L, H, D].

    ``tick`` hears how many continuations each finished batch held.
    """
    import torch

    shape = (model.num_layers, model.num_heads, model.head_dim)
    result = np.zeros((len(continuations), *shape), dtype=np.float32)
    seen: dict[int, Any] = {}

    def keep(layer: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            seen[layer] = args[0]

        return hook

    handles = [
        module.register_forward_pre_hook(keep(layer))
        for layer, module in enumerate(model.projections)
    ]
    try:
        for batch in run_batches(model, prefix, continuations, logits=False):
            lines = torch.arange(len(batch.rows), device=model.device)
            last = torch.stack(
                [seen[layer][lines, batch.lengths - 1] for layer in range(model.num_layers)], 1
            )
            result[batch.rows] = last.float().cpu().numpy().reshape(-1, *shape)
            tick(len(batch.rows))
    finally:
        for handle in handles:
            handle.remove()
    return result
