"""Whether a model will fit into memory, known before it is loaded."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palign_fit.errors import InputError

BASE = 500_000_000
"""Python, torch and transformers themselves, bytes."""

PASS_TOKENS = 512
"""Tokens of a batch of sentences: 32 of about 16."""

COPIES = 4
"""Arrays of gradients that are held at once while directions are found."""


@dataclass(frozen=True)
class Need:
    """Bytes that a fit takes, about: within a fifth of what was measured on a Qwen of 1.5B.

    ``weights`` of the model; ``batch``: one forward and backward pass; ``arrays``: what it gives, on the host.
    """

    weights: int
    batch: int
    arrays: int

    @classmethod
    def of(cls, config: Any, dtype: str, texts: int) -> Need:
        """Of a model with ``config`` in ``dtype`` whose gradients are read over ``texts`` sentences; 0 for a
        model that is only run."""
        import torch
        import transformers

        kind = getattr(torch, dtype)
        with torch.device("meta"):
            empty = transformers.AutoModelForCausalLM.from_config(config, dtype=kind)
        text = config.get_text_config(decoder=True)
        width = int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size)
        layers, heads = int(text.num_hidden_layers), int(text.num_attention_heads)
        size = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
        # Every layer's inputs wait for the backward pass; logits are there in float32 a few times.
        inside = layers * (8 * int(text.hidden_size) + 3 * width) * kind.itemsize
        batch = PASS_TOKENS * (inside + 4 * int(text.vocab_size) * 4)
        return cls(
            weights=sum(weight.numel() for weight in empty.parameters()) * kind.itemsize,
            batch=batch if texts else batch // 4,
            arrays=COPIES * texts * layers * heads * size * 4,
        )


def refuse_too_large(
    source: str, *, device: str, dtype: str, texts: int, limit: float | None
) -> None:
    """Refuse a model that will not fit, before it is loaded. Raises InputError.

    ``dtype`` auto is the checkpoint's own. ``limit``: GB that may be taken, what is free if None. Where it cannot be told, nothing is refused.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    if dtype == "auto":
        stored = getattr(config.get_text_config(decoder=True), "dtype", None)
        dtype = str(stored or "float32").removeprefix("torch.")
    need = None
    with suppress(Exception):  # an architecture without a plain constructor is simply tried
        need = Need.of(config, dtype, texts)
    if need is None:
        return
    host = need.weights + need.arrays + BASE + (need.batch if device == "cpu" else 0)
    free = available_bytes() if limit is None else int(limit * 1e9)
    if free is not None and host > free:
        given = "--memory gives" if limit is not None else "are free:"
        raise InputError(
            f"--model {source}: takes about {host / 1e9:.1f} GB in {dtype} ({need.weights / 1e9:.1f} of "
            f"them its weights), {given} {free / 1e9:.1f}. Use a smaller model, "
            f"{'--dtype bfloat16, ' if dtype == 'float32' else ''}a machine with more memory, or "
            f"--memory {host / 1e9:.0f} to try all the same"
        )
    if device == "cuda":
        import torch

        on_device, there = need.weights + need.batch, torch.cuda.mem_get_info()[0]
        if limit is None and on_device > there:
            raise InputError(
                f"--model {source}: takes about {on_device / 1e9:.1f} GB of GPU memory in {dtype}, "
                f"{there / 1e9:.1f} are free. Use --device cpu or a smaller model"
            )


def available_bytes() -> int | None:
    """Memory this process may still take: of the machine, and of its container; None if nobody says."""
    free = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Files that were read stay in memory until somebody needs it.
        taken = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        free.append(most - taken)
    return min(free) if free else None
