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
def logprobs(
    model: Any, token_ids: Sequence[int], parts: Sequence[tuple[Persona, float]] = ()
) -> np.ndarray:
    """Log-probability of every token but the first given those before it, [T-1] float64."""
    ids = torch.tensor([token_ids])
    if parts:
        with steered(model, parts):
            logits = model(ids).logits
    else:
        logits = model(ids).logits
    table = torch.log_softmax(logits[0, :-1].double(), dim=-1)
    return table.gather(1, ids[0, 1:, None])[:, 0].numpy()
