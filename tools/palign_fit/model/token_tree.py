"""Token likelihoods of many continuations of one prefix, each shared token computed once.

Continuations are packed into one sequence as a tree of tokens: a token sees the prefix and its own
ancestors only, at the position it would have alone. Nothing is padded, the prefix's keys and values
are never copied per continuation, and the last token of a continuation is not run at all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from palign_fit.model.model import OpenedModel
from vllm_palign.directions.numbers import Reals

Tokens = Sequence[int]

MAX_NODES = 256
"""Tokens in one forward pass: enough to keep a core busy, few enough for large vocabularies."""

KNOWN_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of attention that a tree's mask can be written for."""


@dataclass
class TokenTree:
    """Continuations as a tree. ``tokens``, ``parents``: per node; parent -1 is the prefix's end.

    ``paths`` per continuation: its nodes. Nodes come after their parents.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)
    _place: dict[tuple[int, int], int] = field(default_factory=dict)

    def add(self, continuation: Tokens) -> None:
        node = -1
        path = []
        for token in continuation:
            key = (node, token)
            if key not in self._place:
                self._place[key] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
            node = self._place[key]
            path.append(node)
        self.paths.append(path)


def packed(model: OpenedModel, prefix: Tokens, continuations: Sequence[Tokens]) -> list[Reals]:
    """A ``likelihood.Reader`` by trees of tokens; see the module's text."""
    import torch
    from transformers import DynamicCache

    result: list[Reals] = [np.zeros(0)] * len(continuations)
    with torch.inference_mode():
        start = torch.tensor([list(prefix)], device=model.device)
        # Without a config every layer keeps the whole prefix; sliding windows are in the masks.
        first = model.model(
            input_ids=start, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1
        )
        for rows, tree in _trees(continuations):
            found = _tree_log_probs(model, first, len(prefix), tree)
            for row, path in zip(rows, tree.paths, strict=True):
                result[row] = found[path]
    return result


def _trees(continuations: Sequence[Tokens]) -> Iterator[tuple[list[int], TokenTree]]:
    """Trees of about MAX_NODES tokens. Sorted first, so that what begins alike lies together."""
    rows: list[int] = []
    tree = TokenTree()
    for row in sorted(range(len(continuations)), key=lambda one: list(continuations[one])):
        if rows and len(tree.tokens) + len(continuations[row]) > MAX_NODES:
            yield rows, tree
            rows, tree = [], TokenTree()
        rows.append(row)
        tree.add(continuations[row])
    if rows:
        yield rows, tree


def _tree_log_probs(model: OpenedModel, first: Any, prefix: int, tree: TokenTree) -> Reals:
    """Log-probability of every node given its ancestors and the prefix: float64 [nodes]."""
    import torch

    inner = sorted({parent for parent in tree.parents if parent >= 0})
    line = {node: at for at, node in enumerate(inner)}
    logits = first.logits[0, -1:].float()
    if inner:
        positions, mask = _positions_and_mask(model, prefix, tree, inner)
        cache = copy.copy(first.past_key_values)
        # A layer's update replaces its tensors, so shallow copies leave the prefix as it was.
        cache.layers = [copy.copy(layer) for layer in first.past_key_values.layers]
        out = model.model(
            input_ids=torch.tensor([[tree.tokens[node] for node in inner]], device=model.device),
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        logits = torch.cat([logits, out.logits[0].float()])
    norms = logits.logsumexp(-1)
    source = torch.tensor([line.get(parent, -1) + 1 for parent in tree.parents])
    source = source.to(logits.device)
    tokens = torch.tensor(tree.tokens, device=logits.device)
    found: Reals = (logits[source, tokens] - norms[source]).double().cpu().numpy()
    return found


def _positions_and_mask(
    model: OpenedModel, prefix: int, tree: TokenTree, inner: Sequence[int]
) -> tuple[Any, Any]:
    """Positions int64 [1, T], and an additive mask [1, 1, T, prefix + T] per kind of attention."""
    import torch

    line = {node: at for at, node in enumerate(inner)}
    sees = torch.zeros(len(inner), prefix + len(inner), dtype=torch.bool)
    sees[:, :prefix] = True
    positions = torch.zeros(len(inner), dtype=torch.long)
    for at, node in enumerate(inner):
        above = line.get(tree.parents[node])
        if above is not None:
            sees[at] = sees[above]
        sees[at, prefix + at] = True
        positions[at] = prefix if above is None else positions[above] + 1
    keys = torch.cat([torch.arange(prefix), positions])
    config = model.model.config.get_text_config(decoder=True)
    masks = {}
    for kind in layer_kinds(config):
        seen = sees
        if kind == "sliding_attention":
            seen = sees & (positions[:, None] - keys[None] < config.sliding_window)
        mask = torch.zeros(seen.shape, dtype=model.model.dtype)
        mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
        masks[kind] = mask[None, None].to(model.device)
    return positions[None].to(model.device), masks if len(masks) > 1 else masks.popitem()[1]


def layer_kinds(config: Any) -> set[str]:
    """The kinds of attention a decoder mixes, as its own mask functions name them."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds:
        return kinds
    return {"sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"}
