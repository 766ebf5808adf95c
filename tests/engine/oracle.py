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


def displacements(blend: Blend) -> dict[int, torch.Tensor]:
    """Layer -> d [H*D], what its concatenated heads are moved by; steered layers only."""
    moved: dict[int, np.ndarray] = {}
    for persona, scale in blend.items():
        for layer, head, offset in zip(persona.layers, persona.heads, persona.offsets, strict=True):
            rows = moved.setdefault(int(layer), np.zeros((persona.num_heads, persona.head_dim)))
            rows[head] += scale * persona.alpha * offset.astype(np.float64)
    return {layer: torch.from_numpy(rows.reshape(-1)).float() for layer, rows in moved.items()}


@contextmanager
def steered(model: Any, projection: str, blend: Blend) -> Iterator[None]:
    """The bias of every attention output projection shifted by W_o d; put back at the end."""
    before = []
    for layer, moved in displacements(blend).items():
        module = model.get_submodule(projection.format(layer))
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
    handles = []
    for layer, moved in displacements(blend).items():
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


def error(got: list[list[float]] | np.ndarray, wanted: list[list[float]] | np.ndarray) -> float:
    """Largest absolute difference of log-probabilities."""
    found, wanted = np.asarray(got), np.asarray(wanted)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return float(np.abs(found - wanted).max())
