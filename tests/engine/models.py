"""Tiny random checkpoints of many decoder families, random personas, random LoRA adapters.

Two layers; 32 is the smallest head_dim the CPU attention kernels take. Where a family's config has
a head_dim of its own, heads x head_dim differs from hidden_size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vllm_palign import Persona, save

VOCAB = 160
LAYERS = 2
HEAD_DIM = 32


@dataclass(frozen=True)
class Family:
    """``config`` makes the transformers config; ``projection`` is the path of the attention output
    projection in Hugging Face's module tree, ``{}`` standing for the layer."""

    config: str
    fields: dict[str, Any]
    projection: str = "model.layers.{}.self_attn.o_proj"
    heads: int = 2
    engine: dict[str, Any] = field(default_factory=dict)
    exact_gelu: bool = False
    """vLLM computes the exact GELU where Hugging Face's own class approximates it by tanh."""


_WIDE = {
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

_NARROW = {key: value for key, value in _WIDE.items() if key != "head_dim"} | {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
"""2 heads x 32 = hidden_size 64."""

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaConfig", _WIDE, heads=4),
    "llama_transformers_backend": Family(
        "LlamaConfig", _WIDE, heads=4, engine={"model_impl": "transformers"}
    ),
    "mistral": Family("MistralConfig", _WIDE | {"sliding_window": None}, heads=4),
    "mixtral": Family(
        "MixtralConfig",
        _WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        heads=4,
    ),
    "qwen2": Family("Qwen2Config", _NARROW),
    "qwen3": Family("Qwen3Config", _WIDE, heads=4),
    "qwen2_moe": Family(
        "Qwen2MoeConfig",
        _NARROW
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "qwen3_moe": Family(
        "Qwen3MoeConfig",
        _WIDE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        heads=4,
    ),
    "gemma": Family("GemmaConfig", _WIDE | {"tie_word_embeddings": True}, heads=4),
    "gemma2": Family(
        "Gemma2Config",
        _WIDE | {"tie_word_embeddings": True, "query_pre_attn_scalar": 32, "sliding_window": 16},
        heads=4,
    ),
    "gemma3": Family(
        "Gemma3TextConfig",
        _WIDE
        | {
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        heads=4,
    ),
    "phi": Family(
        "PhiConfig",
        _NARROW | {"num_key_value_heads": 2},
        projection="model.layers.{}.self_attn.dense",
    ),
    "phi3": Family("Phi3Config", _NARROW | {"pad_token_id": 0}),
    "gpt2": Family(
        "GPT2Config",
        {"vocab_size": VOCAB, "n_embd": 64, "n_layer": LAYERS, "n_head": 2, "n_positions": 128},
        projection="transformer.h.{}.attn.c_proj",
    ),
    "gpt_neox": Family(
        "GPTNeoXConfig",
        {key: value for key, value in _NARROW.items() if key != "num_key_value_heads"},
        projection="gpt_neox.layers.{}.attention.dense",
    ),
    "gpt_oss": Family(
        "GptOssConfig",
        _WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
        heads=4,
    ),
    "opt": Family(
        "OPTConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 64,
        },
        projection="model.decoder.layers.{}.self_attn.out_proj",
    ),
    "falcon": Family(
        "FalconConfig",
        {
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
        },
        projection="transformer.h.{}.self_attention.dense",
    ),
    "bloom": Family(
        "BloomConfig",
        {"vocab_size": VOCAB, "hidden_size": 64, "n_layer": LAYERS, "n_head": 2},
        projection="transformer.h.{}.self_attention.dense",
        exact_gelu=True,
    ),
    "granite": Family("GraniteConfig", _NARROW | {"attention_multiplier": 0.2}),
    "olmo2": Family("Olmo2Config", _NARROW | {"pad_token_id": 0}),
    "starcoder2": Family("Starcoder2Config", _NARROW),
    "glm4": Family(
        "Glm4Config", _WIDE | {"pad_token_id": 0, "partial_rotary_factor": 0.5}, heads=4
    ),
    "stablelm": Family("StableLmConfig", _NARROW),
    "gptj": Family(
        "GPTJConfig",
        {
            "vocab_size": VOCAB,
            "n_embd": 64,
            "n_layer": LAYERS,
            "n_head": 2,
            "n_positions": 128,
            "rotary_dim": 16,
        },
        projection="transformer.h.{}.attn.out_proj",
    ),
    "olmoe": Family("OlmoeConfig", _NARROW | {"num_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": Family("SmolLM3Config", _NARROW | {"pad_token_id": 0}),
    "nemotron": Family("NemotronConfig", _WIDE, heads=4),
    "cohere": Family("CohereConfig", _NARROW | {"tie_word_embeddings": True, "logit_scale": 1.0}),
}


def build(name: str, folder: Path) -> Path:
    """A seeded float32 checkpoint of the family in ``folder/name``."""
    import transformers

    family = FAMILIES[name]
    config = getattr(transformers, family.config)(**family.fields)
    return save_random(config, folder / name)


def build_mamba(path: Path) -> Path:
    """A language model without attention."""
    from transformers import MambaConfig

    return save_random(
        MambaConfig(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=LAYERS, state_size=8), path
    )


def build_whisper(path: Path) -> Path:
    """An encoder-decoder."""
    from transformers import WhisperConfig, WhisperFeatureExtractor

    size = {"d_model": 64, "vocab_size": VOCAB, "pad_token_id": 0}
    layers = {f"{part}_layers": LAYERS for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    config = WhisperConfig(**size, **layers, **heads, max_target_positions=64)
    WhisperFeatureExtractor().save_pretrained(path)
    return save_random(config, path, "WhisperForConditionalGeneration")


def save_random(config: Any, path: Path, model_class: str = "AutoModelForCausalLM") -> Path:
    import transformers

    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (getattr(config, token, None) or 0) != 0:
            setattr(config, token, 0)
    torch.manual_seed(0)
    chosen = getattr(transformers, model_class)
    make = getattr(chosen, "from_config", None) or chosen
    model = make(config).float().eval()
    randomise(model)
    model.save_pretrained(path)
    return path


def randomise(model: torch.nn.Module) -> None:
    """The usual initialisation is so small that every distribution is nearly uniform and every bias
    and norm trivial; here nothing is."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in dict(model.named_parameters()).values():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(0.2 * noise)


def random_persona(
    path: Path,
    *,
    seed: int,
    heads: int,
    layers: int = LAYERS,
    head_dim: int = HEAD_DIM,
    steered: int | None = None,
    scale: float = 0.5,
) -> Persona:
    """``steered`` of layers x heads (default: about half), in every layer at least one."""
    rng = np.random.default_rng(seed)
    total = layers * heads
    steered = max(layers, total // 2) if steered is None else steered
    while True:
        index = np.sort(rng.choice(total, steered, replace=False))
        if len(set(index // heads)) == min(layers, steered):
            break
    persona = Persona(
        name=path.stem,
        layers=(index // heads).astype(np.int32),
        heads=(index % heads).astype(np.int32),
        offsets=(scale * rng.standard_normal((steered, head_dim))).astype(np.float32),
        alpha=2.0,
        base_model="random",
        num_layers=layers,
        num_heads=heads,
        head_dim=head_dim,
    )
    save(persona, path)
    return persona


def random_prompt(seed: int, length: int = 9, vocab: int = VOCAB) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(1, vocab, length)]
