"""Gradients in bfloat16 where the CPU has instructions for it and the weights lose nothing by it.

There they take a third to a quarter of the time and half the memory, and point the same way (cosine 0.999).
Likelihoods stay in float32: what a persona changes in them is the size of bfloat16's rounding. There is one
copy of the weights: numbers of bfloat16 stored wide are made narrow and wide again, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices by instructions of its own."""
    import torch

    cpu: Any = torch.cpu  # names of its own in each version
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(cpu, name)() for name in known if hasattr(cpu, name))


def narrower(model: Any) -> str:
    """ "bfloat16" if the gradients of the torch ``model`` are to be computed in it, "" for its own dtype.

    It depends on the CPU and the checkpoint alone, so that runs repeat.
    """
    import torch

    if model.device.type != "cpu" or model.dtype != torch.float32 or not has_bfloat16():
        return ""
    exact = all(torch.equal(weight.bfloat16().float(), weight) for weight in model.parameters())
    return "bfloat16" if exact else ""


@contextmanager
def computing_in(model: Any, dtype: str) -> Iterator[None]:
    """Inside the block the torch ``model`` computes in ``dtype``, "" for its own; after it weights are what
    they were."""
    if not dtype:
        # Not cast to it either: some models keep some of their weights wider.
        yield
        return
    import torch

    wide = model.dtype
    _cast(model, getattr(torch, dtype))
    try:
        yield
    finally:
        _cast(model, wide)


def _cast(model: Any, dtype: Any) -> None:
    # Weights only: a buffer, such as rotary frequencies, may hold more digits than bfloat16.
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
