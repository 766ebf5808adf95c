"""The op alone: its time against the bytes it has to move."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from vllm_palign.worker.bank import BankShape
from vllm_palign.worker.ops import add_offsets

_SECONDS = 0.2
"""How long each measurement repeats what it measures."""
_COPIED = 1 << 27
"""Bytes of the copy that shows what the memory gives."""


def op_times(
    shape: BankShape, dtype: torch.dtype, device: torch.device, batches: tuple[int, ...]
) -> list[dict[str, float]]:
    """The compiled op on all layers of ``shape`` in turn, each with its own rows and activations, for each
    number of decoding requests: ``microseconds`` a layer, ``bytes`` it must move (activations in and out,
    the rows used, the slots), ``of_limit`` the share of the time that these bytes take at the rate of a
    large copy. On a GPU one compiled kernel a layer, in a CUDA graph; on a CPU all layers in one compiled
    function: neither counts Python's part, which a compiled model does not have.
    """
    layers, width = len(shape.layers), shape.num_heads * shape.head_dim
    rows = torch.randn(layers, shape.slots + 1, width, dtype=dtype, device=device)
    work = (
        partial(_all_layers, torch.compile(add_offsets, fullgraph=True))
        if device.type == "cuda"
        else torch.compile(partial(_all_layers, add_offsets), fullgraph=True, dynamic=True)
    )
    seconds_a_byte = _copy_seconds(device) / (2 * _COPIED)
    results = []
    for tokens in batches:
        x = torch.randn(layers, tokens, width, dtype=dtype, device=device)
        for distinct in sorted({1, min(tokens, shape.slots)}):
            slots = torch.arange(tokens, dtype=torch.int32, device=device) % distinct + 1
            each = _seconds(partial(work, x, slots, rows), device) / layers
            moved = (2 * tokens + distinct) * width * x.element_size() + 4 * tokens
            results.append(
                {
                    "batch": tokens,
                    "personas": distinct,
                    "microseconds": 1e6 * each,
                    "bytes": moved,
                    "of_limit": moved * seconds_a_byte / each,
                }
            )
    return results


def _all_layers(
    op: Callable[..., torch.Tensor], x: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor
) -> list[torch.Tensor]:
    return [op(layer_x, slots, layer_rows) for layer_x, layer_rows in zip(x, rows)]  # noqa: B905


def _copy_seconds(device: torch.device) -> float:
    source = torch.ones(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _seconds(lambda: target.copy_(source), device)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one ``work``; compilation and first touches left out."""
    for _ in range(3):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        work = graph.replay
    count = 1
    while True:
        began = time.perf_counter()
        for _ in range(count):
            work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        if seconds > _SECONDS:
            return seconds / count
        count *= 2
