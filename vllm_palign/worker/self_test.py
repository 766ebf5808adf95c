"""Proof at start that the loaded, compiled and captured model applies offsets."""

from __future__ import annotations

import logging
from typing import Any

import torch

from vllm_palign.errors import PalignStartupError
from vllm_palign.worker.bank import OffsetBank

_logger = logging.getLogger("vllm.palign")

_USUAL = 8
"""Tokens of the batch that is always tested."""

# V1 leaves attention out of dummy runs unless told otherwise, and on a CPU its output is then
# whatever memory held: two runs would differ, or drown the probe, for no reason of ours.
V1_DUMMY: dict[str, Any] = {"force_attention": True}


def self_test(runner: Any, bank: OffsetBank) -> None:
    """Prove on the loaded, compiled and captured model that every armed layer's offsets reach the
    hidden states: one dummy forward pass plain, one for each layer with a probe in that layer only.

    Done on a batch of 8 tokens and on the smallest and largest of those a CUDA graph was captured for.
    The graphs between are captured from the same compiled code and not run: every one of some fifty
    would cost a large model minutes of its start.

    Catches a compiled graph without the op (stale cache, a pass that dropped it). Leaves the bank as it
    was, so a worker that serves may be tested too. Raises PalignStartupError. V2's dummy pass keeps to
    itself what a pipeline rank hands on, so there only the last rank is tested.
    """
    silent: dict[int, list[int]] = {}
    batches = _batches(runner, bank)
    with bank.borrowed():
        for tokens, options in batches:
            for layer in _silent_layers(runner, bank, tokens, options):
                silent.setdefault(layer, []).append(tokens)
    if silent:
        sizes = sorted({tokens for found in silent.values() for tokens in found})
        raise PalignStartupError(
            f"self-test failed: offsets in layers {sorted(silent)} of {len(bank.shape.layers)} armed do "
            f"not change the model's hidden states (batches of {sizes} tokens); delete vLLM's compile "
            "cache (~/.cache/vllm/torch_compile_cache) and start again, and report this with the vLLM "
            "version and the model"
        )
    _logger.info(
        "palign: self-test passed, %d layers in batches of %s tokens",
        len(bank.shape.layers),
        sorted({tokens for tokens, _ in batches}),
    )


def _batches(runner: Any, bank: OffsetBank) -> list[tuple[int, dict[str, Any]]]:
    """Tokens of each dummy pass, and its options."""
    config = runner.vllm_config
    scheduler, compilation = config.scheduler_config, config.compilation_config
    most = min(scheduler.max_num_batched_tokens, bank.token_slots.numel())
    captured = [size for size in sorted(compilation.cudagraph_capture_sizes or ()) if size <= most]
    sizes = sorted({min(_USUAL, most), *captured[:1], *captured[-1:]})
    if hasattr(runner, "model_state"):
        return [(size, {}) for size in sizes]
    batches = [(size, V1_DUMMY) for size in sizes]
    if captured:
        # V1 has graphs of their own for batches that only decode.
        decoding = sorted({min(size, scheduler.max_num_seqs) for size in sizes})
        batches += [(size, V1_DUMMY | {"uniform_decode": True}) for size in decoding]
    return batches


def _silent_layers(
    runner: Any, bank: OffsetBank, tokens: int, options: dict[str, Any]
) -> list[int]:
    """Armed layers whose offsets do not change what the model makes of ``tokens`` dummy tokens."""
    bank.token_slots.zero_()
    plain = _dummy_hidden(runner, tokens, options)
    if plain is None:
        return []
    silent = []
    bank.token_slots[:tokens] = 1
    for index, layer in enumerate(bank.shape.layers):
        bank.rows[:, 1].zero_()
        bank.rows[index, 1] = 1.0
        hidden = _dummy_hidden(runner, tokens, options)
        if hidden is None or torch.equal(hidden, plain):
            silent.append(layer)
    return silent


def _dummy_hidden(runner: Any, tokens: int, options: dict[str, Any]) -> torch.Tensor | None:
    hidden, _ = runner._dummy_run(tokens, **options)
    if hidden is None:
        return None
    # A pipeline rank that is not the last hands its hidden states on, by name.
    handed = [hidden] if isinstance(hidden, torch.Tensor) else [part for _, part in hidden.items()]
    states = torch.cat([part[:tokens].float().flatten(1) for part in handed], dim=1)
    # NaN differs from itself, so a broken forward pass would look like one the probe has reached.
    return torch.nan_to_num(states)
