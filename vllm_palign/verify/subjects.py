"""The engine that is verified, and the personas and prompts it is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm_palign.persona import Persona, save
from vllm_palign.shape import ModelShape

HEADS_PER_LAYER = 2
SCALE = 0.5
"""Standard deviation of offsets: far beyond a fitted persona, so that an effect stands out of any noise."""


@dataclass(frozen=True)
class Subject:
    """``model`` a path or Hugging Face id; ``dummy``: only its config.json counts, weights are random."""

    model: str
    dummy: bool

    def engine_options(self) -> dict[str, Any]:
        """What every engine of a verification is started with. Prompts are token ids."""
        options: dict[str, Any] = {
            "model": self.model,
            "skip_tokenizer_init": True,
            "seed": 0,
            "disable_log_stats": False,
        }
        return options | {"load_format": "dummy"} if self.dummy else options


def model_shape(options: dict[str, Any]) -> tuple[ModelShape, int, int]:
    """The shape, vocabulary and longest sequence of the model that ``LLM(**options)`` would serve."""
    from vllm import EngineArgs

    config = EngineArgs(**options).create_model_config()
    return ModelShape.of(config), config.get_vocab_size(), config.max_model_len


def write_personas(folder: Path, names: list[str], shape: ModelShape) -> dict[str, str]:
    """Random personas with offsets in every layer that has self-attention; name -> file."""
    files = {}
    layers = sorted(shape.attention_layers)
    heads = min(HEADS_PER_LAYER, shape.num_heads)
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        places = [
            (layer, head)
            for layer in layers
            for head in sorted(rng.choice(shape.num_heads, heads, replace=False).tolist())
        ]
        persona = Persona(
            name=name,
            layers=np.array([layer for layer, _ in places], dtype=np.int32),
            heads=np.array([head for _, head in places], dtype=np.int32),
            offsets=rng.standard_normal((len(places), shape.head_dim), dtype=np.float32)
            * np.float32(SCALE),
            alpha=1.0,
            base_model="palign verify",
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            head_dim=shape.head_dim,
        )
        files[name] = str(save(persona, folder / f"{name}.safetensors"))
    return files


def prompt(seed: int, length: int, vocabulary: int) -> list[int]:
    """Random token ids, away from the ends of the vocabulary where special tokens live."""
    low, high = (1000, vocabulary - 1000) if vocabulary > 4000 else (10, vocabulary)
    return [int(token) for token in np.random.default_rng(seed).integers(low, high, length)]
