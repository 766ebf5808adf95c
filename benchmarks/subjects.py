"""What the compared servers are given: random personas, LoRA adapters, and people in prompts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from palign_fit.evaluation.texts import few_shot_prompt
from palign_fit.inputs.inventory import built_in
from palign_fit.model.prompts import chat_prefix

from vllm_palign import Persona, save

LAYERS, HEADS, HEAD_DIM = 30, 9, 64
STEERED_HEADS = 24
RANK = 8
PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}

_WHEN = ("If there is a complaint from", "When you are greeted by", "Before you send anything to")
_WHO = ("a customer", "a supplier", "somebody from the press", "a colleague in the warehouse")
_WHAT = (
    "ask for the number of the order",
    "say what is known and what is not",
    "name the page of the handbook that you go by",
    "offer to call back on the same day",
)


def write_personas(folder: Path, count: int) -> list[str]:
    """Random personas of the usual size in ``folder``; returns their names."""
    folder.mkdir()
    names = [f"p{seed}" for seed in range(count)]
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        places = np.sort(rng.choice(LAYERS * HEADS, STEERED_HEADS, replace=False)).astype(np.int32)
        persona = Persona(
            name=name, layers=places // HEADS, heads=places % HEADS,
            offsets=(rng.standard_normal((STEERED_HEADS, HEAD_DIM)) * 0.02).astype(np.float32),
            alpha=4.0, base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
            num_layers=LAYERS, num_heads=HEADS, head_dim=HEAD_DIM,
        )  # fmt: skip
        save(persona, folder / f"{name}.safetensors")
    return names


def write_adapters(folder: Path, count: int, model: Path) -> dict[str, Path]:
    """Random LoRA adapters on all projections, as PEFT saves them; name -> folder."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(model / "model.safetensors", "np") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    adapters = {}
    for seed in range(count):
        rng = np.random.default_rng(seed)
        tensors = {}
        for layer in range(LAYERS):
            for part, names in PROJECTIONS.items():
                for name in names:
                    module = f"model.layers.{layer}.{part}.{name}"
                    out_width, in_width = shapes[f"{module}.weight"]
                    for matrix, shape in (("A", (RANK, in_width)), ("B", (out_width, RANK))):
                        tensors[f"base_model.model.{module}.lora_{matrix}.weight"] = (
                            rng.standard_normal(shape) * 0.01
                        ).astype(np.float32)
        adapter = folder / f"a{seed}"
        adapter.mkdir(parents=True)
        save_file(tensors, adapter / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK,
            "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "modules_to_save": None,
            "target_modules": [name for names in PROJECTIONS.values() for name in names],
        }  # fmt: skip
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        adapters[f"a{seed}"] = adapter
    return adapters


class Prompts:
    """Prompts that no server has seen: questions with a number of their own."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._asked = 0
        self._met = 0

    def plain(self, count: int) -> list[str]:
        return [self._prompt(None) for _ in range(count)]

    def of_people(self, people: list[str]) -> list[str]:
        """One prompt for each system prompt of ``people``."""
        return [self._prompt(person) for person in people]

    def new_system(self, tokens: int) -> str:
        """A system prompt of about ``tokens`` tokens that begins as no other does."""
        self._met += 1
        rules = random.Random(self._met)
        text = f"You answer for shop {self._met}."
        while len(ids := self._tokenizer.encode(text)) < tokens:
            text += f" {rules.choice(_WHEN)} {rules.choice(_WHO)}, {rules.choice(_WHAT)}."
        return str(self._tokenizer.decode(ids[:tokens]))

    def new_people(self, count: int) -> list[str]:
        """System prompts of people not met before, all 120 statements of the built-in inventory with
        answers drawn at random."""
        people = []
        for _ in range(count):
            answers = random.Random(self._met)
            self._met += 1
            items = list(built_in().items)
            # Nobody's prompt begins as another's: no KV block is shared by chance.
            answers.shuffle(items)
            people.append(few_shot_prompt([(item, answers.randint(1, 5)) for item in items]))
        return people

    def _prompt(self, system: str | None) -> str:
        self._asked += 1
        ids = chat_prefix(
            self._tokenizer, f"What happened on day {self._asked} of your trip?", system
        )
        return str(self._tokenizer.decode(ids))
