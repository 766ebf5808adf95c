"""The numbers of a served model that a persona has to fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_palign.directions import Directions
from vllm_palign.effect import Effect
from vllm_palign.errors import PalignStartupError, PersonaIncompatible
from vllm_palign.persona import Persona, model_name

MAX_OFFSET = 10_000.0
"""Largest |alpha x offset| that is served, in activation units.

``--palign-max-strength`` bounds what a request may ask for, and means nothing if a file may bring any alpha. What
an output projection sees are averages of value vectors: numbers around 1 in most models, hundreds at the very
most. A fitted offset is one standard deviation of them times an alpha of at most 20. Beyond this bound there is no
persona, only noise, and numbers that 16-bit sums and 8-bit scales cannot hold."""

_logger = logging.getLogger("vllm.palign")


@dataclass(frozen=True)
class ModelShape:
    """``num_heads`` are query heads of the whole model; ``attention_layers`` the 0-based indices of
    decoder layers that have self-attention (all of them, but for hybrid models); ``largest`` is the
    largest finite number of the model's activation dtype."""

    num_layers: int
    num_heads: int
    head_dim: int
    attention_layers: frozenset[int]
    largest: float

    @classmethod
    def of(cls, model_config: Any) -> ModelShape:
        """Read a vLLM ``ModelConfig``."""
        import torch

        num_layers = model_config.get_total_num_hidden_layers()
        text_config = model_config.hf_text_config
        return cls(
            num_layers=num_layers,
            num_heads=model_config.model_arch_config.total_num_attention_heads,
            # The output projection's input is made of value heads, which MLA sizes apart.
            head_dim=getattr(text_config, "v_head_dim", None) or model_config.get_head_size(),
            attention_layers=frozenset(_attention_layers(model_config, num_layers)),
            largest=float(torch.finfo(model_config.dtype).max),
        )

    def check(self, persona: Persona, name: str) -> None:
        """Raises PersonaIncompatible, with every number that differs, or for offsets beyond all activations."""
        problems = [
            f"{field} is {getattr(persona, field)}, the served model has {getattr(self, field)}"
            for field in ("num_layers", "num_heads", "head_dim")
            if getattr(persona, field) != getattr(self, field)
        ]
        without = sorted(set(persona.layers.tolist()) - self.attention_layers)
        if without and not problems:
            problems.append(f"it steers layers {without}, which have no self-attention here")
        if problems:
            raise PersonaIncompatible(
                f"persona {name!r} does not fit: "
                + "; ".join(problems)
                + "; fit it on the served model"
            )
        if not persona.peak <= MAX_OFFSET:
            raise PersonaIncompatible(
                f"persona {name!r} is too strong: alpha {persona.alpha:g} x its largest offset is "
                f"{persona.peak:g}, wanted at most {MAX_OFFSET:g} (activations of a model are around 1); "
                "fit it again, or with a smaller --alpha"
            )

    def check_directions(self, directions: Directions) -> None:
        """Raises PalignStartupError, with every number that differs from what personas of the served model have."""
        problems = [
            f"{field} is {getattr(directions, field)}, the served model has {getattr(self, field)}"
            for field in ("num_layers", "num_heads", "head_dim")
            if getattr(directions, field) != getattr(self, field)
        ]
        without = sorted(set(directions.layers.tolist()) - self.attention_layers)
        if without and not problems:
            problems.append(f"they steer layers {without}, which have no self-attention here")
        if problems:
            raise PalignStartupError(
                f"directions of {directions.base_model[:80]!r} do not fit: "
                + "; ".join(problems)
                + "; make the served model's with palign-fit directions"
            )

    def check_range(self, effect: Effect) -> None:
        """Raises PersonaIncompatible when offsets would leave the model's dtype (float16 ends at 65504)."""
        most = float(np.abs(effect.offsets).max())
        if not most <= self.largest:
            raise PersonaIncompatible(
                f"effective offsets reach {most:g}, the served model's dtype ends at "
                f"{self.largest:g}; ask for less strength",
                param="persona.strength",
            )


# Checkpoints say "attention" or 1, what transformers 5 makes of them "full_attention".
_ATTENTION = {"attention", "hybrid", "full_attention", "sliding_attention", 1}


def _attention_layers(model_config: Any, num_layers: int) -> list[int]:
    """Indices of self-attention layers, as vLLM's ``ModelConfig.get_num_layers_by_block_type`` counts them."""
    if not model_config.is_hybrid:
        return list(range(num_layers))
    config = model_config.hf_text_config
    for field in ("layers_block_type", "attn_type_list", "layer_types"):
        kinds_by_layer = getattr(config, field, None)
        if kinds_by_layer is not None:
            return [index for index, kind in enumerate(kinds_by_layer) if kind in _ATTENTION]
    return list(range(num_layers))


def is_foreign(persona: Persona, model: str) -> bool:
    """Whether ``persona`` was fitted on a model of another name than the served ``model``."""
    return model_name(persona.base_model) != model_name(model)


def warn_foreign(names: Mapping[str, str], model: str) -> None:
    """Log personas (name -> base model) that ``is_foreign``, in one line however many they are."""
    if not names:
        return
    name, base_model = next(iter(names.items()))
    _logger.warning(
        "palign: persona %r%s was fitted on %r, served is %r of the same shape; "
        "it will steer, but perhaps not as intended",
        name,
        f" and {len(names) - 1} more" if len(names) > 1 else "",
        base_model[:80],
        model,
    )
