"""What vLLM, the machine or an edit could do to an engine, done to it while it starts. Runs in the
engine's process."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any
from unittest import mock


@contextlib.contextmanager
def _without_hook_of_layer_1() -> Any:
    """As if a compiled graph, or an edit, had lost the op in one layer between load and warm-up."""
    import vllm_palign.worker.runner as runner

    arm = runner.arm

    def lossy(sites: Any, bank: Any) -> None:
        arm(sites, bank)
        sites[1].projection._forward_pre_hooks.clear()

    runner.arm = lossy
    try:
        yield
    finally:
        runner.arm = arm


@contextlib.contextmanager
def _stale_compiled_graph() -> Any:
    """As if a graph compiled by stock vLLM had been loaded: the hooks come after the compilation."""
    import vllm_palign.worker.runner as runner

    arm, self_test, armed = runner.arm, runner.self_test, []

    def late_self_test(*args: Any) -> None:
        arm(*armed)
        self_test(*args)

    runner.arm = lambda sites, bank: armed.extend((sites, bank))
    runner.self_test = late_self_test
    try:
        yield
    finally:
        runner.arm, runner.self_test = arm, self_test


@contextlib.contextmanager
def _drifted_runner() -> Any:
    """As after an upgrade of vLLM that renamed a parameter of the model runner."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    original = GPUModelRunner._update_states
    GPUModelRunner._update_states = lambda self, output: original(self, output)
    try:
        yield
    finally:
        GPUModelRunner._update_states = original


def _replaced(owner: str, name: str, value: Any) -> Any:
    """As after an upgrade of vLLM in which ``owner`` ("module:Class" or "module") has another ``name``."""

    @contextlib.contextmanager
    def tamper() -> Any:
        module, _, attribute = owner.partition(":")
        target = importlib.import_module(module)
        target = getattr(target, attribute) if attribute else target
        with mock.patch.object(target, name, value):
            yield

    return tamper


@contextlib.contextmanager
def _unknown_projection_names() -> Any:
    """As with a family whose output projection has a name we have never seen."""
    import vllm_palign.worker.layer as layer

    names, layer.PROJECTION_NAMES = layer.PROJECTION_NAMES, ("no_such_projection",)
    try:
        yield
    finally:
        layer.PROJECTION_NAMES = names


@contextlib.contextmanager
def _other_traced_code() -> Any:
    """As after an upgrade of the plugin that changed what is traced."""
    import vllm_palign.admission.armed as armed
    import vllm_palign.plugin.wraps as wraps
    import vllm_palign.worker.runner as runner

    traced = wraps.TRACED
    armed.TRACED = wraps.TRACED = runner.TRACED = "0123456789ab"
    try:
        yield
    finally:
        armed.TRACED = wraps.TRACED = runner.TRACED = traced


@contextlib.contextmanager
def _without_amx() -> Any:
    """The kernels of machines that have AMX take 16-bit numbers only; the others take float32 too."""
    import torch

    supported, torch.cpu._is_amx_tile_supported = torch.cpu._is_amx_tile_supported, lambda: False
    try:
        yield
    finally:
        torch.cpu._is_amx_tile_supported = supported


@contextlib.contextmanager
def _fp8_on_a_cpu() -> Any:
    """vLLM loads fp8 checkpoints with a kernel that its builds for CPUs do not have, and multiplies them with
    PyTorch's, which do."""
    import torch
    import vllm._custom_ops as ops

    def scaled_fp8_quant(x: Any, scale: Any) -> tuple[Any, Any]:
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale

    with _without_amx(), mock.patch.object(ops, "scaled_fp8_quant", scaled_fp8_quant):
        yield


@contextlib.contextmanager
def _asynchronous_scheduling() -> Any:
    """vLLM turns it off on CPUs ("not required"). Its code runs there too, given streams and events that do
    nothing; those stay, because steps use them."""
    from v2_driver import pretend_there_are_streams
    from vllm.platforms.cpu import CpuPlatform

    pretend_there_are_streams()
    original = CpuPlatform.check_and_update_config

    def keep_it_on(config: Any) -> None:
        original(config)
        config.scheduler_config.async_scheduling = True

    with mock.patch.object(CpuPlatform, "check_and_update_config", staticmethod(keep_it_on)):
        yield


def lose_hooks_and_test_again(worker: Any) -> str | None:
    """Runs in a worker: what the start-up self-test says once this rank's projections have lost their hooks."""
    from vllm_palign import PalignStartupError
    from vllm_palign.worker.self_test import self_test

    worker = getattr(worker, "worker", worker)
    for module in worker.model_runner.get_model().modules():
        if hasattr(module, "palign_rows"):
            module._forward_pre_hooks.clear()
    try:
        self_test(worker.model_runner, worker.palign_bank)
    except PalignStartupError as error:
        return error.message
    return None


RPCS: dict[str, str | Callable[[Any], Any]] = {
    "lose_hooks_and_test_again": lose_hooks_and_test_again,
    "armed": "palign_armed",
    # As elastic expert parallelism does with workers that serve.
    "warm_up_again": "compile_or_warm_up_model",
}
"""What a step of a job can have done in every worker; a string names a method of the worker."""

TAMPERINGS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "asynchronous_scheduling": _asynchronous_scheduling,
    "without_amx": _without_amx,
    "fp8_on_a_cpu": _fp8_on_a_cpu,
    "without_hook_of_layer_1": _without_hook_of_layer_1,
    "stale_compiled_graph": _stale_compiled_graph,
    "drifted_runner": _drifted_runner,
    "drifted_request": _replaced("vllm.v1.core.sched.output", "NewRequestData", object),
    "drifted_step": _replaced("vllm.v1.core.sched.output", "SchedulerOutput", object),
    "drifted_dummy_run": _replaced(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner",
        "_dummy_run",
        lambda self, num_tokens: None,
    ),
    "unknown_projection_names": _unknown_projection_names,
    "other_traced_code": _other_traced_code,
}
