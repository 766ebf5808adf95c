"""One request's offsets change nobody else's answer: what is quantised with them must not share a scale."""

from __future__ import annotations

import logging
from typing import Any

import torch

from vllm_palign.errors import PalignStartupError
from vllm_palign.worker.layer import Site

_logger = logging.getLogger("vllm.palign")

_TOKENS = 32
"""Rows of the batch that is tried. Some kernels take multiples of 16."""
_QUIET, _LOUD = 2.0**-8, 2.0**14
"""Sizes of activations, four million apart: within one scale for both, the small ones are rounded to zero
in any eight-bit format, and the large ones are still numbers in float16."""


def refuse_shared_scales(sites: list[Site], dtype: torch.dtype, device: torch.device) -> None:
    """Raises PalignStartupError if a projection makes something else of a token beside loud neighbours.

    That is what dynamic quantisation of activations *per tensor* does: the largest value of the batch
    sets everybody's scale, and offsets go into this input as they are. So vLLM quantises without a
    static scale where it has no CUTLASS kernel for fp8 (``--quantization fp8`` and fp8 checkpoints with
    dynamic activations on ROCm and XPU, Quark's and torchao's per-tensor schemes). Per token, per group,
    static and weight-only schemes keep tokens apart. Tried on the loaded layer instead of looked up, so
    that it holds for schemes nobody has listed here.

    Later layers see offsets only through a norm, which bounds a steered token like any other: a scale
    shared there depends on neighbours as in stock vLLM, and no more.
    """
    try:
        sharing = [site for site in sites if _shares_scale(site.projection, dtype, device)]
    except Exception as error:
        # Weights may be where only the model's own forward pass finds them, offloaded ones say.
        _logger.warning(
            "palign: could not try whether one request's persona changes other requests' answers through "
            "a shared activation scale: %r",
            error,
        )
        return
    if sharing:
        methods = sorted({type(_quant_method(site.projection)).__name__ for site in sharing})
        raise PalignStartupError(
            f"the output projections of layers {[site.layer for site in sharing]} quantise their input "
            f"with one scale for the whole batch ({', '.join(methods)}), so one request's persona would "
            "change other requests' answers; serve a checkpoint whose activation scales are static or "
            "per token (compressed-tensors' FP8-dynamic is per token), or one that quantises weights only"
        )


def _shares_scale(projection: Any, dtype: torch.dtype, device: torch.device) -> bool:
    method = _quant_method(projection)
    if method is None:
        return False
    layer = getattr(projection, "base_layer", projection)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((_TOKENS, layer.input_size_per_partition), generator=generator) * 2 - 1
    quiet, loud = _QUIET * x, _LOUD * x
    loud[0] = quiet[0]
    with torch.inference_mode():
        # Without the bias, which would hide that nothing is left of the first token.
        alone, beside = (
            method.apply(layer, batch.to(device, dtype), None)[0].float().nan_to_num()
            for batch in (quiet, loud)
        )
    return bool((beside - alone).norm() > 0.5 * alone.norm())


def _quant_method(projection: Any) -> Any:
    """vLLM's quantisation of a projection; None where it has none."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    # LoRA's wrapper quantises nothing itself.
    method = getattr(getattr(projection, "base_layer", projection), "quant_method", None)
    return None if isinstance(method, UnquantizedLinearMethod) else method
