"""Where vLLM's attention output projections meet the op."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vllm_palign.errors import PalignStartupError
from vllm_palign.shape import ModelShape
from vllm_palign.worker.bank import OffsetBank
from vllm_palign.worker.ops import add_offsets

PROJECTION_NAMES = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out_projection")


class Site:
    """One decoder layer's self-attention and the module its concatenated heads go into."""

    def __init__(self, layer: int, projection: nn.Module, num_heads: int, head_dim: int) -> None:
        self.layer = layer
        self.projection = projection
        self.num_heads = num_heads
        self.head_dim = head_dim


def find_sites(model: nn.Module, shape: ModelShape, expected: frozenset[int]) -> list[Site]:
    """The output projection of every decoder self-attention of this rank, by structure.

    ``expected`` are the decoder layers of this pipeline rank that have self-attention. Raises
    PalignStartupError, naming the model class, if any is not found exactly once, or if layers
    differ in size: a model steered in some of its layers would be a wrong answer nobody sees.
    """
    from vllm.model_executor.models.utils import extract_layer_index

    modules = dict(model.named_modules(remove_duplicate=False))
    sites: dict[int, Site] = {}
    problems = []
    for attention in _attentions(model, modules):
        head_dim = getattr(attention, "v_head_dim", None) or attention.head_size_v
        layer = extract_layer_index(attention.layer_name)
        width = attention.num_heads * head_dim
        found = _projections(modules, attention, layer, width)
        if len(found) != 1:
            problems.append(
                f"layer {layer}: {len(found)} output projections of input width {width} beside "
                f"{attention.layer_name!r}, wanted one of {', '.join(PROJECTION_NAMES)}"
            )
        elif layer in sites:
            problems.append(f"layer {layer} has two self-attentions")
        elif head_dim != shape.head_dim:
            problems.append(f"layer {layer} has head_dim {head_dim}, the model {shape.head_dim}")
        else:
            sites[layer] = Site(layer, found[0], attention.num_heads, head_dim)
    if set(sites) != expected and not problems:
        problems.append(
            f"found self-attention in layers {sorted(sites)}, the model's config says {sorted(expected)}"
        )
    if len({site.num_heads for site in sites.values()}) > 1:
        problems.append("layers differ in their number of heads")
    if problems:
        raise PalignStartupError(
            f"palign cannot steer {type(model).__name__}: " + "; ".join(problems[:5])
        )
    return [sites[layer] for layer in sorted(sites)]


def arm(sites: list[Site], bank: OffsetBank) -> None:
    """Hook every site's projection, on the outermost module: LoRA's wrapper never calls the layer it
    wraps, and must see the steered input itself."""
    for index, site in enumerate(sites):
        # Plain attributes, not buffers: reloads and sleep mode rewrite buffers.
        site.projection.palign_rows = bank.rows[index]
        site.projection.palign_slots = bank.token_slots
        site.projection.register_forward_pre_hook(_steer)


def _steer(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (add_offsets(args[0], module.palign_slots, module.palign_rows), *args[1:])


def _attentions(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[Any]:
    """Every decoder self-attention, once. The Transformers backend keeps them beside the module tree."""
    from vllm.model_executor.layers.attention.attention import Attention
    from vllm.model_executor.layers.attention.mla_attention import MLAAttention
    from vllm.v1.attention.backend import AttentionType

    beside = getattr(model, "attention_instances", None) or {}
    seen: set[int] = set()
    for module in [*modules.values(), *beside.values()]:
        if not isinstance(module, (Attention, MLAAttention)) or id(module) in seen:
            continue
        seen.add(id(module))
        if getattr(module, "attn_type", AttentionType.DECODER) == AttentionType.DECODER:
            yield module


def _projections(
    modules: dict[str, nn.Module], attention: Any, layer: int, width: int
) -> list[nn.Module]:
    """Candidates: siblings of the attention, then its parent's siblings (MLA puts a wrapper between),
    then, where the attention is not in the tree, anything of that name in an attention of the layer."""
    path = next((name for name, module in modules.items() if module is attention), None)
    if path is not None:
        for parent in (path.rpartition(".")[0], path.rpartition(".")[0].rpartition(".")[0]):
            found = _named(modules, re.compile(re.escape(parent) + r"\.[^.]+"), width)
            if found:
                return found
        return []
    inside = re.compile(rf"(?:.*\.)?{layer}\.(?:[^.]+\.)*[^.]*att[^.]*\.[^.]+")
    return _named(modules, inside, width)


def _named(modules: dict[str, nn.Module], pattern: re.Pattern[str], width: int) -> list[nn.Module]:
    found = {
        id(module): module
        for name, module in modules.items()
        if name.rpartition(".")[2] in PROJECTION_NAMES
        and pattern.fullmatch(name)
        and _input_width(module) == width
    }
    return list(found.values())


def _input_width(module: nn.Module) -> int | None:
    # LoRA's wrapper says nothing of its width in vLLM 0.27: its base layer does.
    for owner in (module, getattr(module, "base_layer", None)):
        for name in ("input_size_per_partition", "in_features"):
            width = getattr(owner, name, None)
            if isinstance(width, int):
                return width
    return None
