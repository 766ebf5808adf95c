"""What a decoder family needs to be built tiny, and the sizes that most of them share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VOCAB = 160
LAYERS = 2
HEAD_DIM = 32
"""The smallest that the CPU attention kernels take."""


@dataclass(frozen=True)
class Family:
    """``config`` makes the transformers config; ``projection`` is the path of the attention output
    projection in Hugging Face's module tree, ``{}`` standing for the layer."""

    config: str
    fields: dict[str, Any]
    projection: str = "model.layers.{}.self_attn.o_proj"
    heads: int = 2
    layers: int = LAYERS
    attention: tuple[int, ...] = tuple(range(LAYERS))
    """Layers that have self-attention; hybrid models lack it in some."""
    head_dim: int = HEAD_DIM
    kind: str = ""
    """What is particular about it and does not show in its fields."""
    inexact: str = ""
    """Why stock vLLM and Hugging Face differ by more than the bound before anything is steered."""
    engine: dict[str, Any] = field(default_factory=dict)
    exact_gelu: bool = False
    """vLLM computes the exact GELU where Hugging Face's own class approximates it by tanh."""

    @property
    def traits(self) -> str:
        """For the table of families."""
        found = {
            "mixture of experts": any("expert" in field for field in self.fields),
            "sliding window": bool(self.fields.get("sliding_window")),
            "MLA": "kv_lora_rank" in self.fields,
            "hybrid: attention in some layers": len(self.attention) < self.layers,
            self.kind: bool(self.kind),
            f"inexact: {self.inexact}": bool(self.inexact),
        }
        return "; ".join(trait for trait, has in found.items() if has)


WIDE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
"""4 heads x 32 = 128, hidden_size 64."""

NARROW = {key: value for key, value in WIDE.items() if key != "head_dim"} | {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
"""2 heads x 32 = hidden_size 64."""

PADDED = {"pad_token_id": 0}

WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
"""A sliding window in the first layer."""
