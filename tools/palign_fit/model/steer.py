"""Apply offsets to a Hugging Face model: what the server does to a steered request.

Letters for shapes: B rows of a batch, T tokens, K steered heads, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from palign_fit.errors import FitError, InputError

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


def stacked(
    model: OpenedModel, rows: Sequence[tuple[Persona | None, float]]
) -> tuple[IntArray, IntArray, FloatArray]:
    """Layers and heads int32 [K] that any of ``rows`` steers, and what each row adds there: float32 [B, K, D].

    Raises InputError if a persona was made for another geometry.
    """
    personas = {one.digest: one for one, _ in rows if one is not None}
    for one in personas.values():
        check_shape(model, one)
    places = sorted(
        {place for one in personas.values() for place in zip(one.layers, one.heads, strict=True)}
    )
    at = {place: k for k, place in enumerate(places)}
    added = np.zeros((len(rows), len(places), model.head_dim), np.float32)
    for row, (persona, strength) in enumerate(rows):
        if persona is not None:
            own = [at[place] for place in zip(persona.layers, persona.heads, strict=True)]
            added[row, own] = np.float32(strength * persona.alpha) * persona.offsets
    layers, heads = np.array(places, np.int32).reshape(-1, 2).T
    return layers, heads, added


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
    """As ``steered``, with ``added`` in activation units put in unscaled: float32 [K, D] for all rows of a
    batch alike, or [B, K, D] for each row its own.

    Raises FitError where rows of their own meet a batch of another size, or a model that does not hand its
    projections [B, T, H * D].
    """
    import torch

    alike = added.ndim == 2
    by_row = torch.from_numpy(np.array(added[None] if alike else added, dtype=np.float32))
    offsets = {}
    for layer in sorted({int(layer) for layer in layers}):
        rows = torch.zeros(len(by_row), model.num_heads, model.head_dim)
        for k in np.flatnonzero(layers == layer):
            rows[:, int(heads[k])] = by_row[:, k]
        offsets[layer] = rows.flatten(1)

    def add(layer: int, value: Any) -> Any:
        if layer not in offsets:
            return value
        wide = offsets[layer].to(value)
        if alike:
            return value + wide[0]
        if value.dim() != 3 or len(wide) != len(value):
            raise FitError(
                f"an output projection takes {list(value.shape)}, wanted [{len(wide)} rows, tokens, width]; "
                "this model cannot be steered row by row"
            )
        return value + wide[:, None, :]

    with before_projections(model, add):
        yield


@contextmanager
def before_projections(model: OpenedModel, change: Callable[[int, Any], Any]) -> Iterator[None]:
    """Inside the block every projection reads ``change(layer, its input)``, [..., H * D]."""

    def hook(layer: int) -> Any:
        return lambda module, args: (change(layer, args[0]), *args[1:])

    handles = [
        module.register_forward_pre_hook(hook(layer))
        for layer, module in enumerate(model.projections)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
