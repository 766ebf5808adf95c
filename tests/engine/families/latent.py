"""Multi-head latent attention (MLA). vLLM's kernel for CPUs is compiled for the rank and the rotated part of
DeepSeek's checkpoints alone, so those are of full size."""

from __future__ import annotations

from typing import Any

from tests.engine.families.experts import ROUTED
from tests.engine.families.family import HEAD_DIM, WIDE, Family

FIELDS = {key: value for key, value in WIDE.items() if key != "head_dim"} | {
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": HEAD_DIM,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}

ENGINE: dict[str, Any] = {
    # The one of machines with AMX takes 16-bit numbers only.
    "attention_backend": "CPU_MLA",
    "block_size": 16,
    # vLLM's own kernel for CPUs turns heads wrongly that come with a dimension of their own, as here. With
    # YaRN, as in DeepSeek's checkpoints, it is not used.
    "compilation_config": {"custom_ops": ["-rotary_embedding"]},
}

KIND = "without vLLM's rotary kernel for CPUs, which turns its heads wrongly"


def latent(config: str, **fields: Any) -> Family:
    return Family(config, FIELDS | ROUTED | fields, heads=4, kind=KIND, engine=ENGINE)


LATENT: dict[str, Family] = {
    "deepseek_v2": latent("DeepseekV2Config"),
    # What vLLM reads of its checkpoints' configs and transformers does not write.
    "deepseek_v3": latent("DeepseekV3Config", topk_method="noaux_tc", scoring_func="sigmoid"),
    "glm4_moe_lite": latent("Glm4MoeLiteConfig"),
}
