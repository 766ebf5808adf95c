"""A projection that quantises its whole batch with one scale is refused; all other schemes are not."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.input_quant_fp8 import QuantFP8
from vllm.model_executor.layers.quantization.utils.quant_utils import GroupShape

from vllm_palign import PalignStartupError
from vllm_palign.worker.isolation import refuse_shared_scales
from vllm_palign.worker.layer import Site

WIDTH = 256


class Quantised:
    """A linear method whose input goes through vLLM's own ``QuantFP8``."""

    def __init__(self, *, static: bool, group_shape: GroupShape) -> None:
        with set_current_vllm_config(VllmConfig()):
            self.quantise = QuantFP8(static=static, group_shape=group_shape)
        self.scale = torch.tensor([0.05]) if static else None

    def apply(self, layer: Any, x: torch.Tensor, bias: Any) -> torch.Tensor:
        quantised, scale = self.quantise.forward_native(x, self.scale)
        if scale.shape[-1] > 1:
            scale = scale.repeat_interleave(WIDTH // scale.shape[-1], -1)
        return (quantised.float() * scale) @ layer.weight.T


class WeightOnly:
    def apply(self, layer: Any, x: torch.Tensor, bias: Any) -> torch.Tensor:
        return x.float() @ layer.weight.T


def sites(method: Any, *, wrapped: bool = False) -> list[Site]:
    """Two layers, whose projections are quantised so; ``wrapped`` as LoRA wraps them."""
    found = []
    for layer in (3, 5):
        linear = torch.nn.Linear(WIDTH, 64, bias=False).requires_grad_(False)
        linear.quant_method, linear.input_size_per_partition = method, WIDTH
        projection = torch.nn.Module()
        projection.base_layer = linear
        found.append(Site(layer, projection if wrapped else linear, 4, WIDTH // 4))
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("wrapped", [False, True])
def test_one_dynamic_scale_a_batch_is_refused_naming_layers_scheme_and_what_to_do(
    dtype: torch.dtype, wrapped: bool
) -> None:
    method = Quantised(static=False, group_shape=GroupShape.PER_TENSOR)
    with pytest.raises(PalignStartupError) as refused:
        refuse_shared_scales(sites(method, wrapped=wrapped), dtype, torch.device("cpu"))
    assert "layers [3, 5] quantise their input with one scale" in refused.value.message
    assert "(Quantised)" in refused.value.message
    assert "static or per token" in refused.value.message


def test_a_layer_that_cannot_be_tried_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Offloaded:
        def apply(self, layer: Any, x: torch.Tensor, bias: Any) -> torch.Tensor:
            raise RuntimeError("its weights are somewhere else")

    # vLLM takes its loggers out of pytest's sight.
    logger = logging.getLogger("vllm.palign")
    logger.addHandler(caplog.handler)
    try:
        refuse_shared_scales(sites(Offloaded()), torch.float32, torch.device("cpu"))
    finally:
        logger.removeHandler(caplog.handler)
    assert "could not try" in caplog.text
    assert "its weights are somewhere else" in caplog.text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "method",
    [
        lambda: Quantised(static=False, group_shape=GroupShape.PER_TOKEN),
        lambda: Quantised(static=False, group_shape=GroupShape(1, 128)),
        lambda: Quantised(static=True, group_shape=GroupShape.PER_TENSOR),
        WeightOnly,
        UnquantizedLinearMethod,
        lambda: None,
    ],
    ids=["per token", "per group", "static", "weights only", "not quantised", "no method"],
)
def test_schemes_that_keep_tokens_apart_are_served(method: Any, dtype: torch.dtype) -> None:
    refuse_shared_scales(sites(method()), dtype, torch.device("cpu"))
