"""Attention beside, or in turn with, state-space layers."""

from __future__ import annotations

from tests.engine.families.family import HEAD_DIM, NARROW, WIDE, Family

MAMBA = {"mamba_n_heads": 4, "mamba_d_state": 16, "mamba_chunk_size": 16}

HYBRID: dict[str, Family] = {
    "falcon_h1": Family(
        "FalconH1Config", NARROW | MAMBA | {"mamba_d_ssm": 64}, kind="Mamba beside attention"
    ),
    "granitemoehybrid": Family(
        "GraniteMoeHybridConfig",
        NARROW
        | MAMBA
        | {
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 4,
            "shared_intermediate_size": 32,
            "attention_multiplier": 0.2,
        },
        attention=(1,),
    ),
    "nemotron_h": Family(
        "NemotronHConfig",
        {key: value for key, value in WIDE.items() if key != "num_hidden_layers"}
        | {
            "layers_block_type": ["mamba", "attention", "mlp"],
            "ssm_state_size": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": HEAD_DIM,
            "n_groups": 1,
            "chunk_size": 16,
            "use_mamba_kernels": False,
        },
        projection="model.layers.{}.mixer.o_proj",
        heads=4,
        layers=3,
        attention=(1,),
        inexact="Mamba layers differ",
    ),
}
