"""The reference method in plain Hugging Face: ``o_proj.bias += W_o d`` (PAlign, ``set_activate``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vllm_palign import Persona

Blend = Mapping[Persona, float]
"""Persona -> strength x weight."""


def load_hf(path: Path, *, exact_gelu: bool = False) -> Any:
    """The checkpoint as Hugging Face runs it, float32, plain attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if exact_gelu:
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if type(child).__name__ == "BloomGelu":
                    setattr(parent, name, torch.nn.GELU())
    return model


def displacement(blend: Blend, layer: int, heads: int, head_dim: int) -> torch.Tensor:
    """d [H*D] of one layer: what the concatenated heads are moved by."""
    moved = np.zeros((heads, head_dim))
    for persona, scale in blend.items():
        for at, head, offset in zip(persona.layers, persona.heads, persona.offsets, strict=True):
            if at == layer:
                moved[head] += scale * persona.alpha * offset.astype(np.float64)
    return torch.from_numpy(moved.reshape(-1)).float()


@contextmanager
def steered(model: Any, projection: str, blend: Blend) -> Iterator[None]:
    """The bias of every attention output projection shifted by W_o d; put back at the end."""
    shape = next(iter(blend), None)
    before = []
    for layer in range(shape.num_layers if shape else 0):
        module = model.get_submodule(projection.format(layer))
        moved = displacement(blend, layer, shape.num_heads, shape.head_dim)
        # transformers' Conv1D (GPT-2) keeps its weight transposed.
        transposed = type(module).__name__ == "Conv1D"
        shift = moved @ module.weight if transposed else module.weight @ moved
        before.append((module, module.bias))
        bias = shift if module.bias is None else module.bias + shift
        module.bias = torch.nn.Parameter(bias.detach())
    try:
        yield
    finally:
        for module, bias in before:
            module.bias = bias


@contextmanager
def steered_input(model: Any, projection: str, blend: Blend) -> Iterator[None]:
    """The same by its definition, d added to the projection's input. For projections that do
    something to their input first, where a bias would be another thing."""
    shape = next(iter(blend), None)
    handles = []
    for layer in range(shape.num_layers if shape else 0):
        moved = displacement(blend, layer, shape.num_heads, shape.head_dim)
        handles.append(
            model.get_submodule(projection.format(layer)).register_forward_pre_hook(
                lambda _, args, moved=moved: (args[0] + moved, *args[1:])
            )
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def distributions(model: Any, tokens: list[int]) -> np.ndarray:
    """Log-probabilities [T-1, V] after each token but the last."""
    logits = model(torch.tensor([tokens]), use_cache=False).logits[0, :-1]
    return torch.log_softmax(logits.float(), -1).numpy()


def error(got: list[list[float]], wanted: np.ndarray) -> float:
    """Largest absolute difference of log-probabilities."""
    found = np.asarray(got)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return float(np.abs(found - wanted).max())
