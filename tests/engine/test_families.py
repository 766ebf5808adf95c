"""Every decoder family equals Hugging Face with ``o_proj.bias += W_o d``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from . import oracle
from .conftest import Run
from .models import (
    FAMILIES,
    build_mamba,
    build_whisper,
    random_persona,
    random_prompt,
)

BOUND = 1e-4
"""Largest |log-probability difference|, over the whole vocabulary, prompt and answer."""


class Measured:
    """What one family's engine answered, beside what Hugging Face says about the same tokens."""

    def __init__(self, name: str, path: Path, folder: Path) -> None:
        self.family = FAMILIES[name]
        self.path = path
        heads = self.family.heads
        self.alice, self.bob = (
            random_persona(folder / f"{name}-{who}.safetensors", seed=seed, heads=heads)
            for seed, who in enumerate(("alice", "bob"))
        )
        self.files = {who: str(folder / f"{name}-{who}.safetensors") for who in ("alice", "bob")}
        self.prompts = [random_prompt(seed, length=9 + seed) for seed in range(3)]
        self.result: dict[str, Any] = {}

    @property
    def job(self) -> dict[str, Any]:
        plain, alice, mix = self.prompts
        return {
            "model": str(self.path),
            "kwargs": self.family.engine,
            "personas": self.files,
            "batches": [
                [
                    {"prompt": plain},
                    {"prompt": alice, "persona": "alice"},
                    {
                        "prompt": mix,
                        "persona": {"mix": {"alice": 0.7, "bob": -0.4}, "strength": 1.5},
                    },
                ]
            ],
        }

    def errors(self) -> dict[str, float]:
        """Per request, and how far steering moves the same tokens' distributions at all."""
        model = oracle.load_hf(self.path, exact_gelu=self.family.exact_gelu)
        blends = [{}, {self.alice: 1.0}, {self.alice: 1.5 * 0.7, self.bob: 1.5 * -0.4}]
        found = {}
        (batch,) = self.result["batches"]
        for name, prompt, blend, answer in zip(
            ("plain", "alice", "mix"), self.prompts, blends, batch, strict=True
        ):
            tokens = prompt + answer["tokens"]
            with oracle.steered(model, self.family.projection, blend):
                wanted = oracle.distributions(model, tokens)
            found[name] = oracle.error(answer["distributions"], wanted)
            found[f"{name} effect"] = oracle.error(wanted, oracle.distributions(model, tokens))
        return found


@pytest.fixture(scope="module")
def measured(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Measured]:
    """All families in one process: importing vLLM takes longer than a tiny engine."""
    folder = tmp_path_factory.mktemp("personas")
    families = {name: Measured(name, checkpoint(name), folder) for name in FAMILIES}
    for family, result in zip(
        families.values(), engines([family.job for family in families.values()]), strict=True
    ):
        family.result = result
    return families


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probabilities_of_a_steered_request_equal_the_reference_method(
    name: str, measured: dict[str, Measured], record_property: Callable[[str, object], None]
) -> None:
    family = measured[name]
    assert "error" not in family.result, family.result["error"]
    errors = family.errors()
    record_property("measured", " ".join(f"{key}={value:.1e}" for key, value in errors.items()))
    assert errors["plain"] < BOUND, "vLLM and Hugging Face differ before anything is steered"
    assert errors["alice"] < BOUND
    assert errors["mix"] < BOUND
    # Nothing applied, or to the wrong head, could not stay within the bound.
    assert errors["alice effect"] > 1000 * BOUND
    assert errors["mix effect"] > 1000 * BOUND


def test_the_families_include_one_whose_heads_do_not_add_up_to_the_hidden_size() -> None:
    fields = FAMILIES["llama"].fields
    assert fields["num_attention_heads"] * fields["head_dim"] != fields["hidden_size"]


def test_what_cannot_be_steered_is_refused_at_start_by_name(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    llama = str(checkpoint("llama"))
    mamba = str(build_mamba(tmp_path / "mamba"))
    whisper = str(build_whisper(tmp_path / "whisper"))
    cases = {
        "only text generation is steered": {"model": llama, "kwargs": {"runner": "pooling"}},
        "the model has no attention": {"model": mamba},
        "encoder-decoder models are not steered": {"model": whisper},
        "palign cannot steer LlamaForCausalLM: layer 0: 0 output projections": {
            "model": llama,
            "tamper": "unknown_projection_names",
        },
        "dual batch overlap": {
            "model": llama,
            "kwargs": {"ubatch_size": 2, "all2all_backend": "deepep_low_latency"},
        },
    }
    for message, result in zip(cases, engines(list(cases.values())), strict=True):
        assert result["error"]["type"] == "PalignStartupError", result["error"]
        assert message in result["error"]["message"]
