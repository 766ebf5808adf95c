"""Proof at start that the loaded, compiled and captured model applies offsets."""

from __future__ import annotations

from typing import Any

import torch

from vllm_palign.errors import PalignStartupError
from vllm_palign.worker.bank import OffsetBank


def self_test(runner: Any, bank: OffsetBank) -> None:
    """Prove on the loaded, compiled and captured model that every armed layer's offsets reach the
    hidden states: one dummy forward pass plain, one for each layer with a probe in that layer only.

    Catches a compiled graph without the op (stale cache, a pass that dropped it). Raises
    PalignStartupError. V2's dummy pass keeps to itself what a pipeline rank hands on, so there only the
    last rank is tested.
    """
    tokens = min(8, bank.token_slots.numel())
    plain = _dummy_hidden(runner, tokens)
    if plain is None:
        return
    layers, _, width = bank.rows.shape
    probe = torch.zeros(layers, width)
    silent = []
    try:
        bank.token_slots[:tokens] = 1
        for index, layer in enumerate(bank.shape.layers):
            probe.zero_()
            probe[index] = 1.0
            bank.fill(1, probe)
            hidden = _dummy_hidden(runner, tokens)
            if hidden is None or torch.equal(hidden, plain):
                silent.append(layer)
    finally:
        bank.fill(1, probe.zero_())
        bank.token_slots.zero_()
    if silent:
        raise PalignStartupError(
            f"self-test failed: offsets in layers {silent} of {layers} armed do not change the model's "
            "hidden states; delete vLLM's compile cache (~/.cache/vllm/torch_compile_cache) and start "
            "again, and report this with the vLLM version and the model"
        )


# V1 leaves attention out of dummy runs unless told otherwise, and on a CPU its output is then
# whatever memory held: two runs would differ, or drown the probe, for no reason of ours.
_V1_DUMMY = {"force_attention": True}


def _dummy_hidden(runner: Any, tokens: int) -> torch.Tensor | None:
    options = {} if hasattr(runner, "model_state") else _V1_DUMMY
    hidden, _ = runner._dummy_run(tokens, **options)
    if hidden is None:
        return None
    # A pipeline rank that is not the last hands its hidden states on, by name.
    handed = [hidden] if isinstance(hidden, torch.Tensor) else [part for _, part in hidden.items()]
    states = torch.cat([part[:tokens].float().flatten(1) for part in handed], dim=1)
    # NaN differs from itself, so a broken forward pass would look like one the probe has reached.
    return torch.nan_to_num(states)
