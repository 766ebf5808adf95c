"""Models known by their shape: a config.json, no weights."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Any


class Shape(StrEnum):
    """Names for ``palign verify --shape``."""

    llama_3_1_8b = "llama-3.1-8b"


_CONFIGS: dict[Shape, dict[str, Any]] = {
    Shape.llama_3_1_8b: {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 128256,
    },
}


def write_shape(shape: Shape, folder: Path) -> Path:
    """``folder`` as a model that vLLM loads with random weights (``load_format="dummy"``)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_CONFIGS[shape], indent=1))
    return folder
