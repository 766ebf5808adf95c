"""Random LoRA adapters, as PEFT saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANK, LORA_ALPHA = 8, 16
TARGETS = ("q_proj", "o_proj")


def write_adapter(model: Any, folder: Path, base_model: str = "") -> dict[str, torch.Tensor]:
    """An adapter of the Hugging Face ``model`` in ``folder``; returns the change of each weight,
    (alpha / rank) B A. ``base_model`` is what it says that it is for."""
    generator = torch.Generator().manual_seed(7)
    tensors, changes = {}, {}
    for layer in range(model.config.num_hidden_layers):
        for target in TARGETS:
            name = f"model.layers.{layer}.self_attn.{target}"
            out_width, in_width = model.get_submodule(name).weight.shape
            a = 0.2 * torch.randn(RANK, in_width, generator=generator)
            b = 0.2 * torch.randn(out_width, RANK, generator=generator)
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
            changes[name] = LORA_ALPHA / RANK * b @ a
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "base_model_name_or_path": base_model,
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "r": RANK,
                "lora_alpha": LORA_ALPHA,
                "lora_dropout": 0.0,
                "target_modules": list(TARGETS),
                "bias": "none",
                "fan_in_fan_out": False,
                "modules_to_save": None,
            }
        )
    )
    return changes
