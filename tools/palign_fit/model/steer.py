"""Apply offsets to a Hugging Face model: what the server does to a steered request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from palign_fit.errors import InputError

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel
    from vllm_palign.persona import FloatArray, IntArray, Persona


@contextmanager
def steered(model: OpenedModel, persona: Persona, strength: float = 1.0) -> Iterator[None]:
    """Inside the block every token of every forward pass is steered by ``persona``.

    Same as ``o_proj.bias += W_o d`` (PAlign/pas.py ``set_activate``) with d = strength x alpha x
    offsets. Raises InputError if the persona was made for another geometry.
    """
    check_shape(model, persona)
    scaled = np.float32(strength * persona.alpha) * persona.offsets
    with steered_by(model, persona.layers, persona.heads, scaled):
        yield


def check_shape(model: OpenedModel, persona: Persona) -> None:
    """Raise InputError if ``persona`` was made for another geometry than ``model``'s."""
    want = (model.num_layers, model.num_heads, model.head_dim)
    got = (persona.num_layers, persona.num_heads, persona.head_dim)
    if want != got:
        raise InputError(
            f"persona {persona.name!r}, fitted on {persona.base_model[:80]!r}, has (layers, heads, "
            f"head_dim) {got}, {model.base_model} has {want}; fit it on this model"
        )


@contextmanager
def steered_by(
    model: OpenedModel, layers: IntArray, heads: IntArray, added: FloatArray
) -> Iterator[None]:
    """As ``steered``, with ``added`` float32 [K, D] in activation units put in unscaled."""
    import torch

    handles = []
    try:
        for layer in sorted({int(layer) for layer in layers}):
            row = torch.zeros(model.num_heads, model.head_dim)
            for k in np.flatnonzero(layers == layer):
                row[int(heads[k])] = torch.from_numpy(np.array(added[k], dtype=np.float32))
            handles.append(
                model.projections[layer].register_forward_pre_hook(_adder(row.flatten()))
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adder(row: Any) -> Any:
    """A forward pre-hook adding ``row`` float32 [H * D] to the projection's input."""

    def add(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] + row.to(args[0]), *args[1:])

    return add
