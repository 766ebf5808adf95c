"""How probable the model finds continuations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from palign_fit.model.continuations import Prefix, batches
from palign_fit.model.token_tree import KNOWN_LAYERS, Tokens, layer_kinds, packed
from vllm_palign.directions.numbers import Reals

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel

_PROBE_TOLERANCE = {"float32": 1e-3, "float64": 1e-3}
_COARSE_TOLERANCE = 0.25


class Reader(Protocol):
    """Log-probability of every token of each continuation after ``prefix`` (at least one token)."""

    def __call__(
        self, model: OpenedModel, prefix: Tokens, continuations: Sequence[Tokens]
    ) -> list[Reals]: ...


def reader_for(model: OpenedModel) -> Reader:
    """``packed`` where this architecture takes a tree mask, found by trying it; else ``in_rows``.

    Some ignore four-dimensional masks or positions, which would give wrong figures silently.
    """
    kinds = layer_kinds(model.model.config.get_text_config(decoder=True))
    return packed if kinds <= KNOWN_LAYERS and _agrees_with_rows(model) else in_rows


def in_rows(model: OpenedModel, prefix: Tokens, continuations: Sequence[Tokens]) -> list[Reals]:
    """A ``Reader`` by padded rows, for architectures that do not take a tree mask."""
    import torch

    result: list[Reals] = [np.zeros(0)] * len(continuations)
    with torch.no_grad():
        read = Prefix(model, prefix)
        for batch in batches(continuations, model.device):
            logits = read.run(batch).float()
            found = logits.gather(2, batch.ids[:, :, None])[:, :, 0] - logits.logsumexp(-1)
            for row, length, line in zip(
                batch.rows, batch.lengths.tolist(), found.double().cpu().numpy(), strict=True
            ):
                result[row] = line[:length]
    return result


def statement_loglik(
    model: OpenedModel,
    prefix: Tokens,
    statements: Sequence[Tokens],
    reader: Reader = in_rows,
) -> Reals:
    """Mean log-likelihood per token of each statement after ``prefix``: float64 [N], nats."""
    return np.array([line.mean() for line in reader(model, prefix, statements)])


def _agrees_with_rows(model: OpenedModel) -> bool:
    size = int(model.model.get_input_embeddings().num_embeddings)
    tokens = [int(token) for token in np.random.default_rng(0).integers(0, size, 12)]
    lines = [tokens[4:8], [*tokens[4:6], *tokens[8:10]], tokens[8:12]]
    try:
        got = packed(model, tokens[:4], lines)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError):
        return False
    wanted = in_rows(model, tokens[:4], lines)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(got, wanted, strict=True))
    dtype = str(model.model.dtype).removeprefix("torch.")
    return worst <= _PROBE_TOLERANCE.get(dtype, _COARSE_TOLERANCE)
