"""Personas for tests: random, of any shape, reproducible."""

from __future__ import annotations

import numpy as np

from vllm_palign import Persona

SMOLLM2 = {"num_layers": 30, "num_heads": 9, "head_dim": 64}
SMOLLM2_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


def random_persona(
    seed: int,
    *,
    num_layers: int,
    num_heads: int,
    head_dim: int,
    steered: int = 24,
    scale: float = 0.1,
    alpha: float = 4.0,
    name: str = "someone",
    base_model: str = SMOLLM2_NAME,
) -> Persona:
    """``steered`` random heads with normal offsets of standard deviation ``scale``."""
    rng = np.random.default_rng(seed)
    count = min(steered, num_layers * num_heads)
    places = np.sort(rng.choice(num_layers * num_heads, count, replace=False)).astype(np.int32)
    return Persona(
        name=name,
        layers=places // num_heads,
        heads=places % num_heads,
        offsets=(rng.standard_normal((count, head_dim)) * scale).astype(np.float32),
        alpha=alpha,
        base_model=base_model,
        num_layers=num_layers,
        num_heads=num_heads,
        head_dim=head_dim,
    )
