"""The offset op. Keep this function alone in its file: its source is part of the compile cache key
(see ``TRACED``), so that a compiled graph is never reused across a change of what it traces."""

from __future__ import annotations

import hashlib
import inspect

import torch
import torch.nn.functional as F


def add_offsets(x: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """``x`` [..., T, H*D] plus each token's row.

    ``slots`` int32 [at least T] names a row of ``rows`` [S, H*D] (dtype of ``x``) for every token;
    row 0 is zeros, for tokens nobody steers. Traceable, no host sync, no data-dependent shape: both
    tensors keep their addresses, so CUDA graphs replay it with new contents.
    """
    return x + F.embedding(slots.narrow(0, 0, x.shape[-2]), rows)


TRACED = hashlib.sha256(inspect.getsource(add_offsets).encode()).hexdigest()[:12]
"""Identifies the traced code; part of ``VllmConfig.compute_hash`` through ``additional_config``."""
