"""Tiny random checkpoints, random personas, random prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.engine.families import FAMILIES, LAYERS, VOCAB, Family
from vllm_palign import Persona, save

from .families.family import WIDE, WINDOW


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


def build_gemma4(path: Path) -> Path:
    """Heads of 32 in the layer with a sliding window, of 64 in the other, as its checkpoints have them."""
    from transformers import Gemma4TextConfig

    sizes = {"head_dim": 32, "global_head_dim": 64, "hidden_size_per_layer_input": 0}
    return save_random(Gemma4TextConfig(**WIDE | WINDOW | sizes), path)


def build_zamba2(path: Path) -> Path:
    """Mamba layers with one attention that they share."""
    from transformers import Zamba2Config

    mamba = {"mamba_d_state": 16, "n_mamba_heads": 4, "chunk_size": 16, "use_mamba_kernels": False}
    config = Zamba2Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        layers_block_type=["mamba", "hybrid", "hybrid"],
        num_attention_heads=2,
        max_position_embeddings=128,
        **mamba,
    )
    return save_random(config, path)


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
    path: Path, *, seed: int, family: Family, steered: int | None = None, scale: float = 0.5
) -> Persona:
    """``steered`` heads of the family's attention layers (default: about half), in every layer at least
    one."""
    rng = np.random.default_rng(seed)
    places = np.array([(at, head) for at in family.attention for head in range(family.heads)])
    layers = len(family.attention)
    steered = max(layers, len(places) // 2) if steered is None else steered
    while True:
        chosen = places[np.sort(rng.choice(len(places), steered, replace=False))]
        if len(set(chosen[:, 0])) == min(layers, steered):
            break
    persona = Persona(
        name=path.stem,
        layers=chosen[:, 0].astype(np.int32),
        heads=chosen[:, 1].astype(np.int32),
        offsets=(scale * rng.standard_normal((steered, family.head_dim))).astype(np.float32),
        alpha=2.0,
        base_model="random",
        num_layers=family.layers,
        num_heads=family.heads,
        head_dim=family.head_dim,
    )
    save(persona, path)
    return persona


def random_prompt(seed: int, length: int = 9, vocab: int = VOCAB) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(1, vocab, length)]
