"""Continuations of one prefix, in padded batches: the prefix is read once and its keys and values lent out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from palign_fit.arrays import Activations
from palign_fit.model.steer import before_projections

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel

BATCH = 32


@dataclass(frozen=True)
class Batch:
    """Right-padded continuations: causal attention never sees the padding.

    ``rows`` places in the caller's list; ``lengths`` int64 [B] tokens of each; ``ids`` int64 [B, T];
    ``real`` bool [B, T], false on padding.
    """

    rows: list[int]
    lengths: Any
    ids: Any
    real: Any

    @property
    def last(self) -> tuple[Any, Any]:
        """Index of every continuation's last token in a [B, T, ...]."""
        import torch

        return torch.arange(len(self.rows), device=self.ids.device), self.lengths - 1


def batches(continuations: Sequence[Sequence[int]], device: Any) -> Iterator[Batch]:
    """Sorted by length, which keeps padding small; ties keep the caller's order, so runs repeat."""
    import torch

    order = sorted(range(len(continuations)), key=lambda row: len(continuations[row]))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        lengths = torch.tensor([len(continuations[row]) for row in rows], device=device)
        ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long, device=device)
        for line, row in enumerate(rows):
            ids[line, : len(continuations[row])] = torch.tensor(list(continuations[row]))
        real = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        yield Batch(rows, lengths, ids, real)


class Prefix:
    """A prefix that was read, without gradients; every batch goes on from a copy of its cache."""

    def __init__(self, model: OpenedModel, tokens: Sequence[int]) -> None:
        import torch

        self.model = model
        with torch.no_grad():
            ids = torch.tensor([list(tokens)], device=model.device)
            self._read = model.model(input_ids=ids, use_cache=True, logits_to_keep=1)

    def run(self, batch: Batch, *, logits: bool = True) -> Any:
        """One forward pass; logits [B, T, V] at the T positions that predict ``batch.ids``, or None."""
        import torch

        cache = copy.deepcopy(self._read.past_key_values)
        cache.batch_repeat_interleave(len(batch.rows))
        before = batch.real.new_ones(len(batch.rows), cache.get_seq_length())
        out = self.model.model(
            input_ids=batch.ids,
            attention_mask=torch.cat([before, batch.real], dim=1).long(),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=0 if logits else 1,
        )
        if not logits:
            return None
        first = self._read.logits[:, -1:].expand(len(batch.rows), 1, -1)
        return torch.cat([first, out.logits[:, :-1]], dim=1)


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

    def keep(layer: int, value: Any) -> Any:
        seen[layer] = value
        return value

    with torch.no_grad(), before_projections(model, keep):
        read = Prefix(model, prefix)
        for batch in batches(continuations, model.device):
            read.run(batch, logits=False)
            last = torch.stack([seen[layer][batch.last] for layer in range(model.num_layers)], 1)
            result[batch.rows] = last.float().cpu().numpy().reshape(-1, *shape)
            tick(len(batch.rows))
    return result
