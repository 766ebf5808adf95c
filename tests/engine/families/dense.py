"""One stack of attention and MLP."""

from __future__ import annotations

from tests.engine.families.family import (
    HEAD_DIM,
    LAYERS,
    NARROW,
    PADDED,
    VOCAB,
    WIDE,
    WINDOW,
    Family,
)

DENSE: dict[str, Family] = {
    "llama": Family("LlamaConfig", WIDE, heads=4),
    "llama_transformers_backend": Family(
        "LlamaConfig", WIDE, heads=4, engine={"model_impl": "transformers"}
    ),
    "mistral": Family("MistralConfig", WIDE | {"sliding_window": None}, heads=4),
    "qwen2": Family("Qwen2Config", NARROW),
    "qwen3": Family("Qwen3Config", WIDE, heads=4),
    "gemma": Family("GemmaConfig", WIDE | {"tie_word_embeddings": True}, heads=4),
    "gemma2": Family(
        "Gemma2Config",
        WIDE | {"tie_word_embeddings": True, "query_pre_attn_scalar": 32, "sliding_window": 16},
        heads=4,
    ),
    "gemma3": Family(
        "Gemma3TextConfig",
        WIDE
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
        NARROW | {"num_key_value_heads": 2},
        projection="model.layers.{}.self_attn.dense",
    ),
    "phi3": Family("Phi3Config", NARROW | {"pad_token_id": 0}),
    "gpt2": Family(
        "GPT2Config",
        {"vocab_size": VOCAB, "n_embd": 64, "n_layer": LAYERS, "n_head": 2, "n_positions": 128},
        projection="transformer.h.{}.attn.c_proj",
    ),
    "gpt_neox": Family(
        "GPTNeoXConfig",
        {key: value for key, value in NARROW.items() if key != "num_key_value_heads"},
        projection="gpt_neox.layers.{}.attention.dense",
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
        kind="ALiBi",
        exact_gelu=True,
    ),
    "granite": Family("GraniteConfig", NARROW | {"attention_multiplier": 0.2}),
    "olmo2": Family("Olmo2Config", NARROW | {"pad_token_id": 0}),
    "starcoder2": Family("Starcoder2Config", NARROW),
    "glm4": Family("Glm4Config", WIDE | {"pad_token_id": 0, "partial_rotary_factor": 0.5}, heads=4),
    "stablelm": Family("StableLmConfig", NARROW),
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
    "smollm3": Family("SmolLM3Config", NARROW | {"pad_token_id": 0}),
    "nemotron": Family("NemotronConfig", WIDE, heads=4),
    "cohere": Family("CohereConfig", NARROW | {"tie_word_embeddings": True, "logit_scale": 1.0}),
    "arcee": Family("ArceeConfig", WIDE, heads=4),
    "cohere2": Family(
        "Cohere2Config", NARROW | WINDOW | {"tie_word_embeddings": True, "logit_scale": 1.0}
    ),
    "ernie4_5": Family("Ernie4_5Config", WIDE, heads=4),
    "exaone4": Family("Exaone4Config", NARROW | WINDOW),
    "glm": Family("GlmConfig", WIDE | PADDED, heads=4),
    "gpt_bigcode": Family(
        "GPTBigCodeConfig",
        {"vocab_size": VOCAB, "n_embd": 64, "n_layer": LAYERS, "n_head": 2, "n_positions": 128},
        projection="transformer.h.{}.attn.c_proj",
    ),
    "hunyuan_v1_dense": Family("HunYuanDenseV1Config", WIDE | PADDED, heads=4),
    "hyperclovax": Family("HyperCLOVAXConfig", WIDE | PADDED, heads=4),
    "ministral": Family("MinistralConfig", WIDE | WINDOW, heads=4),
    "ministral3": Family("Ministral3Config", WIDE, heads=4),
    "olmo": Family("OlmoConfig", NARROW | PADDED),
    "olmo3": Family("Olmo3Config", NARROW | PADDED | WINDOW),
    "seed_oss": Family("SeedOssConfig", WIDE | PADDED, heads=4),
    "apertus": Family(
        "ApertusConfig", NARROW | PADDED, inexact="vLLM approximates xIELU in another way"
    ),
    "bitnet": Family("BitNetConfig", NARROW),
    "cwm": Family("CwmConfig", WIDE | WINDOW, heads=4),
    "gemma4": Family(
        "Gemma4TextConfig",
        WIDE
        | WINDOW
        | {
            "tie_word_embeddings": True,
            "global_head_dim": HEAD_DIM,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": VOCAB,
        },
        heads=4,
        kind="one head size; its checkpoints have two and are refused",
    ),
    "jais2": Family("Jais2Config", NARROW),
    "minicpm3": Family(
        "MiniCPM3Config",
        {key: value for key, value in WIDE.items() if key != "head_dim"}
        | {
            "num_key_value_heads": 4,
            "q_lora_rank": 48,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": HEAD_DIM,
        },
        heads=4,
        kind="run as ordinary attention",
        inexact="larger activations than others",
    ),
    "nanochat": Family("NanoChatConfig", NARROW),
    "vaultgemma": Family(
        "VaultGemmaConfig", WIDE | WINDOW | {"query_pre_attn_scalar": 32}, heads=4
    ),
}
