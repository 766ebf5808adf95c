"""Mixtures of experts."""

from __future__ import annotations

from tests.engine.families.family import NARROW, PADDED, WIDE, WINDOW, Family

ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
FOUR = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}

EXPERTS: dict[str, Family] = {
    "mixtral": Family(
        "MixtralConfig",
        WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
        heads=4,
    ),
    "qwen2_moe": Family(
        "Qwen2MoeConfig",
        NARROW
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "qwen3_moe": Family(
        "Qwen3MoeConfig",
        WIDE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        heads=4,
    ),
    "gpt_oss": Family(
        "GptOssConfig",
        WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
        heads=4,
    ),
    "olmoe": Family("OlmoeConfig", NARROW | {"num_experts": 4, "num_experts_per_tok": 2}),
    "cohere2_moe": Family(
        "Cohere2MoeConfig",
        WIDE | WINDOW | {"num_experts": 4, "tie_word_embeddings": True, "logit_scale": 1.0},
        heads=4,
    ),
    "dots1": Family("Dots1Config", WIDE | ROUTED | {"first_k_dense_replace": 1}, heads=4),
    "exaone_moe": Family("ExaoneMoeConfig", WIDE | WINDOW | FOUR, heads=4),
    "flex_olmo": Family(
        "FlexOlmoConfig", NARROW | PADDED | {"num_experts": 4, "num_experts_per_tok": 2}
    ),
    "glm4_moe": Family("Glm4MoeConfig", WIDE | ROUTED | {"use_qk_norm": True}, heads=4),
    "granitemoe": Family("GraniteMoeConfig", NARROW | LOCAL | {"attention_multiplier": 0.2}),
    "granitemoeshared": Family(
        "GraniteMoeSharedConfig",
        NARROW | LOCAL | {"attention_multiplier": 0.2, "shared_intermediate_size": 32},
    ),
    "hunyuan_v1_moe": Family(
        "HunYuanMoEV1Config", WIDE | PADDED | {"num_experts": 4, "moe_topk": 2}, heads=4
    ),
    "solar_open": Family("SolarOpenConfig", WIDE | ROUTED, heads=4),
    "afmoe": Family(
        "AfmoeConfig",
        WIDE
        | WINDOW
        | FOUR
        | {"num_shared_experts": 1, "score_func": "sigmoid", "route_norm": True, "n_group": 1}
        | {"topk_group": 1},
        heads=4,
        kind="gated attention",
    ),
    "llama4": Family(
        "Llama4TextConfig",
        WIDE
        | PADDED
        | {"num_local_experts": 4, "intermediate_size_mlp": 96, "attention_chunk_size": 32},
        heads=4,
        kind="chunked attention",
        engine={"block_size": 32},
    ),
}
