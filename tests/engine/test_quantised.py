"""A quantised projection is steered at its input, before it quantises it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import oracle
from tests.engine.conftest import Run
from tests.engine.families import FAMILIES
from tests.engine.models import random_persona, random_prompt
from tests.shown import Measured

FAMILY = FAMILIES["llama"]
BOUND = 0.05
"""A value on the edge between two of 255 steps may fall to either side, which moves everything
after it; steering moves log-probabilities by several units."""

W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


WEIGHT_STEPS = 31
"""A quarter of what int8 holds: CPUs without VNNI add products in 16 bits, which saturate beyond it."""


def quantised(values: torch.Tensor, steps: int = 127) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as int8 within +-``steps`` and their scales [N, 1]; also of activations, a row a token."""
    scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-9) / steps
    return (values / scale).round().clamp(-steps - 1, steps), scale


def write_w8a8(source: Path, target: Path) -> None:
    """``source`` with every linear layer of the decoder as compressed-tensors' int8."""
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        integers, scale = quantised(tensors[name], WEIGHT_STEPS)
        tensors[name] = integers.to(torch.int8)
        tensors[f"{name}_scale"] = scale
    config = json.loads((source / "config.json").read_text())
    target.mkdir()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": W8A8}))


class FakeInt8(torch.nn.Module):
    """What an int8 x int8 linear layer computes, in float32."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        integers, scale = quantised(linear.weight.detach(), WEIGHT_STEPS)
        self.weight = torch.nn.Parameter(integers * scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        integers, scale = quantised(x)
        return (integers * scale) @ self.weight.T


@pytest.fixture
def reference(checkpoint: Callable[[str], Path]) -> Any:
    model = oracle.load_hf(checkpoint("llama"))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name.endswith("_proj"):
                setattr(parent, name, FakeInt8(child))
    return model


@pytest.mark.shows(
    "features",
    "quantised weights",
    note="int8 W8A8 (compressed-tensors); bound 0.05: a value between two steps may fall to either side",
)
def test_int8_weights_and_activations_steered_equal_the_same_arithmetic_in_hugging_face(
    engines: Run,
    checkpoint: Callable[[str], Path],
    reference: Any,
    tmp_path: Path,
    measured: Measured,
) -> None:
    write_w8a8(checkpoint("llama"), tmp_path / "w8a8")
    file = tmp_path / "alice.safetensors"
    alice = random_persona(file, seed=0, family=FAMILY)
    prompts = [random_prompt(1), random_prompt(2)]
    (result,) = engines(
        [
            {
                "model": str(tmp_path / "w8a8"),
                "tamper": "without_amx",
                "personas": {"alice": str(file)},
                "batches": [[{"prompt": prompts[0]}, {"prompt": prompts[1], "persona": "alice"}]],
            }
        ]
    )
    assert "error" not in result, result["error"]
    errors = {}
    for name, prompt, blend, answer in zip(
        ("plain", "steered"), prompts, ({}, {alice: 1.0}), result["batches"][0], strict=True
    ):
        tokens = prompt + answer["tokens"]
        with oracle.steered_input(reference, blend, FAMILY.projection, len(prompt) - 1):
            wanted = oracle.distributions(reference, tokens)
        errors[name] = oracle.error(answer["distributions"], wanted)
        if blend:
            errors["effect"] = oracle.error(wanted, oracle.distributions(reference, tokens))
    measured(errors)
    assert errors["plain"] < BOUND
    assert errors["steered"] < BOUND
    assert errors["effect"] > 20 * BOUND


def write_fp8(source: Path, target: Path, activation_scheme: str) -> None:
    """``source`` with every linear layer of the decoder in float8, one scale a matrix."""
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale
        if activation_scheme == "static":
            tensors[name.replace(".weight", ".input_scale")] = torch.tensor(0.05)
    config = json.loads((source / "config.json").read_text())
    fp8 = {"quant_method": "fp8", "activation_scheme": activation_scheme}
    target.mkdir()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": fp8}))


@pytest.mark.shows("refusals", "fp8 with one dynamic scale a batch")
def test_fp8_whose_batch_shares_one_scale_is_refused_and_one_with_a_static_scale_is_served(
    engines: Run,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    jobs = []
    for scheme in ("dynamic", "static"):
        write_fp8(checkpoint("llama"), tmp_path / scheme, scheme)
        jobs.append(
            {
                "model": str(tmp_path / scheme),
                "kwargs": {"dtype": "bfloat16"},
                "tamper": "fp8_on_a_cpu",
                "batches": [[{"prompt": random_prompt(1)}]],
            }
        )
    dynamic, static = engines(jobs)
    assert dynamic["error"]["type"] == "PalignStartupError", dynamic["error"]
    message = dynamic["error"]["message"]
    assert "layers [0, 1] quantise their input with one scale for the whole batch" in message
    assert "(Fp8LinearMethod)" in message
    record_property("said", message)
    assert "error" not in static, static["error"]
