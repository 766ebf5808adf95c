"""A model that will not fit is refused before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from palign_fit.errors import InputError
from palign_fit.model import memory, model
from palign_fit.model.memory import Need, available_bytes


def test_what_will_not_fit_is_refused_before_it_is_loaded(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", None)
    monkeypatch.setattr(memory, "available_bytes", lambda: 400_000_000)
    with pytest.raises(
        InputError,
        match=r"^--model [^ ]*tiny-fit: takes about 0\.5 GB in float32 .*are free: 0\.4.*--memory 1",
    ):
        model.open_model(str(tiny_checkpoint), device="cpu", texts=1500)
    with pytest.raises(InputError, match=r"--memory gives 0\.1"):
        model.open_model(str(tiny_checkpoint), device="cpu", texts=1500, memory=0.1)


def test_more_is_taken_where_it_is_given_or_nobody_knows(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1)
    model.open_model(str(tiny_checkpoint), device="cpu", memory=60)
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    model.open_model(str(tiny_checkpoint), device="cpu")


def test_the_estimate_knows_the_weights_and_is_about_what_was_measured() -> None:
    """Qwen2.5-1.5B in float32, 1,500 sentences: 12.1 GB at its peak."""
    from transformers import Qwen2Config

    config: Any = Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
        num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    need = Need.of(config, "float32", 1500)
    assert need.weights == 4 * 1_543_714_304
    assert 0.8 < (need.weights + need.batch + need.arrays + memory.BASE) / 12.1e9 < 1.2
    half = Need.of(config, "bfloat16", 1500)
    assert half.weights == need.weights / 2 and half.batch < need.batch
    assert Need.of(config, "float32", 0).arrays == 0


def test_this_machine_says_what_is_free() -> None:
    free = available_bytes()
    assert free is not None and 10**7 < free < 10**13
