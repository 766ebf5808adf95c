"""The reference method in plain Hugging Face: ``o_proj.bias += W_o d`` (PAlign/pas.py ``set_activate``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from vllm_palign import Persona


@contextmanager
def steered(model: Any, parts: Sequence[tuple[Persona, float]]) -> Iterator[None]:
    """``model`` (Llama-like) with the sum of ``scale * alpha * offsets`` over (persona, scale) in its biases."""
    if not parts:
        yield
        return
    layers = model.model.layers
    projections = [layer.self_attn.o_proj for layer in layers]
    before = [projection.bias for projection in projections]
    persona = parts[0][0]
    displacement = torch.zeros(
        len(layers), persona.num_heads, persona.head_dim, dtype=torch.float64
    )
    for persona, scale in parts:
        for layer, head, offset in zip(persona.layers, persona.heads, persona.offsets, strict=True):
            displacement[layer, head] += scale * persona.alpha * torch.from_numpy(offset.copy())
    try:
        for projection, row in zip(projections, displacement.flatten(1), strict=True):
            weight = projection.weight
            projection.bias = torch.nn.Parameter(
                (weight.double() @ row.to(weight.device)).to(weight.dtype), requires_grad=False
            )
        yield
    finally:
        for projection, bias in zip(projections, before, strict=True):
            projection.bias = bias


@torch.inference_mode()
def table(
    model: Any, token_ids: Sequence[int], parts: Sequence[tuple[Persona, float]] = (), last: int = 0
) -> torch.Tensor:
    """Log-probabilities [T-1, V] float64 of what may follow each token but the last one; with ``last``,
    only of the ``last`` tokens' places."""
    ids = torch.tensor([token_ids])
    keep = last + 1 if last else 0
    with steered(model, parts):
        logits = model(ids, logits_to_keep=keep).logits
    return torch.log_softmax(logits[0, :-1].double(), dim=-1)


def logprobs(
    model: Any, token_ids: Sequence[int], parts: Sequence[tuple[Persona, float]] = ()
) -> np.ndarray:
    """Log-probability of every token but the first given those before it, [T-1] float64."""
    rows = table(model, token_ids, parts)
    return rows.gather(1, torch.tensor(token_ids)[1:, None])[:, 0].numpy()


def greedy(
    model: Any,
    prompt: Sequence[int],
    answer: Sequence[int],
    parts: Sequence[tuple[Persona, float]] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Of every token of the answer: its log-probability, and the best one's at its place. Both [T] float64."""
    rows = table(model, [*prompt, *answer], parts, last=len(answer))
    own = rows.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return own.numpy(), rows.max(-1).values.numpy()


def continuation(
    model: Any, prompt: Sequence[int], count: int, parts: Sequence[tuple[Persona, float]] = ()
) -> list[int]:
    """The ``count`` likeliest tokens, one after the other."""
    tokens: list[int] = []
    for _ in range(count):
        tokens.append(int(table(model, [*prompt, *tokens, 0], parts, last=1)[0].argmax()))
    return tokens
