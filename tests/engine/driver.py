"""Runs a list of engines in one process: ``python driver.py job.json result.json``.

vLLM keeps process-wide state (plugins, distributed groups, compile caches, environment), so no test
creates an engine in pytest's own process. A job is ``{"engines": [...]}``; the keys of an engine are
read in ``run_engine`` and those of a request in ``_sampling``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any
from unittest import mock


def run_engine(job: dict[str, Any]) -> dict[str, Any]:
    """Start one engine, answer its batches in order, and say what the bank holds afterwards.

    An exception, of the start or of a request, is a result: ``{"error": {"type", "message"}}``.
    """
    from vllm import LLM, EngineArgs

    started = time.monotonic()
    kwargs = dict(job.get("kwargs", {}))
    if "personas" in job:
        kwargs["additional_config"] = {"palign": {"personas": job["personas"]}}
    tamper = _TAMPERINGS[job["tamper"]] if "tamper" in job else contextlib.nullcontext
    llm = None
    try:
        with tamper():
            if job.get("only_config"):
                config = EngineArgs(job["model"], **kwargs).create_engine_config()
                return {"config_hash": config.compute_hash()}
            llm = LLM(job["model"], **kwargs)
        batches = [_answer(llm, batch) for batch in job.get("batches", [])]
        # vLLM tells its workers which requests are over with the next step, if there is one.
        llm.llm_engine.step()
        result = {
            "batches": batches,
            "config_hash": llm.llm_engine.vllm_config.compute_hash(),
            "bank": llm.collective_rpc(_inspect_bank),
            "preemptions": _preemptions(llm),
            "compiled": llm.llm_engine.vllm_config.compilation_config.mode != 0,
        }
    except Exception as error:
        traceback.print_exc()
        result = {"error": {"type": type(error).__name__, "message": str(error)}}
    finally:
        del llm
        _free()
    return {**result, "seconds": time.monotonic() - started}


def _answer(llm: Any, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    outputs = llm.generate(
        [{"prompt_token_ids": request["prompt"]} for request in batch],
        [_sampling(request) for request in batch],
        lora_request=[_lora(request) for request in batch],
        use_tqdm=False,
    )
    return [_plain(output) for output in outputs]


def _sampling(request: dict[str, Any]) -> Any:
    from vllm import SamplingParams

    from vllm_palign import persona_args

    persona = request.get("persona")
    return SamplingParams(
        max_tokens=request.get("max_tokens", 4),
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        # Everything: the test compares whole distributions.
        logprobs=-1,
        prompt_logprobs=-1 if request.get("prompt_distributions", True) else None,
        extra_args=None if persona is None else persona_args(persona),
    )


def _lora(request: dict[str, Any]) -> Any:
    from vllm.lora.request import LoRARequest

    path = request.get("lora")
    return None if path is None else LoRARequest(Path(path).name, 1, path)


def _plain(output: Any) -> dict[str, Any]:
    """``distributions`` [T-1, V]: row t is what the model says after token t of prompt + answer.
    Without prompt distributions the rows of the prompt's tokens but its last are missing."""
    (answer,) = output.outputs
    steps = [*(output.prompt_logprobs or [None])[1:], *(answer.logprobs or [])]
    return {
        "tokens": list(answer.token_ids),
        "cached": output.num_cached_tokens,
        "distributions": [
            [step[token].logprob for token in range(len(step))] for step in steps if step
        ],
    }


def _inspect_bank(worker: Any) -> dict[str, Any] | None:
    """Runs in the worker."""
    worker = getattr(worker, "worker", worker)
    bank = getattr(worker, "palign_bank", None)
    if bank is None:
        return None
    return {
        "requests": bank.num_requests,
        "resident": bank.num_resident,
        "slots": bank.shape.slots,
        "heads": [bank.shape.first_head, bank.shape.num_heads],
        "layers": list(bank.shape.layers),
        "token_slots": int(bank.token_slots.abs().sum()),
        "neutral": float(bank.rows[:, 0].abs().sum()),
        "runner": f"{type(worker.model_runner).__module__}.{type(worker.model_runner).__name__}",
    }


def _preemptions(llm: Any) -> int | None:
    with contextlib.suppress(Exception):
        for metric in llm.get_metrics():
            if metric.name == "vllm:num_preemptions":
                return int(metric.value)
    return None


@contextlib.contextmanager
def _without_hook_of_layer_1() -> Any:
    """As if a compiled graph, or an edit, had lost the op in one layer between load and warm-up."""
    import vllm_palign.runner as runner

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
    import vllm_palign.runner as runner

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
    import vllm_palign.layer as layer

    names, layer.PROJECTION_NAMES = layer.PROJECTION_NAMES, ("no_such_projection",)
    try:
        yield
    finally:
        layer.PROJECTION_NAMES = names


@contextlib.contextmanager
def _other_traced_code() -> Any:
    """As after an upgrade of the plugin that changed what is traced."""
    import vllm_palign.runner as runner
    import vllm_palign.wiring as wiring

    traced = wiring.TRACED
    wiring.TRACED = runner.TRACED = "0123456789ab"
    try:
        yield
    finally:
        wiring.TRACED = runner.TRACED = traced


@contextlib.contextmanager
def _without_amx() -> Any:
    """The kernels of machines that have AMX take 16-bit numbers only; the others take float32 too."""
    import torch

    supported, torch.cpu._is_amx_tile_supported = torch.cpu._is_amx_tile_supported, lambda: False
    try:
        yield
    finally:
        torch.cpu._is_amx_tile_supported = supported


_TAMPERINGS = {
    "without_amx": _without_amx,
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


def _free() -> None:
    """Give the engine's memory back and forget its process groups, so that the next one can start."""
    from vllm.distributed import cleanup_dist_env_and_memory

    gc.collect()
    with contextlib.suppress(Exception):
        cleanup_dist_env_and_memory()


def _inspect_models_here() -> None:
    """vLLM looks at each model class in a fresh process, six seconds each, to keep CUDA out of this one."""
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda function: function()


def main() -> None:
    _inspect_models_here()
    job_file, result_file = map(Path, sys.argv[1:3])
    job = json.loads(job_file.read_text())
    results = []
    for engine in job["engines"]:
        results.append(run_engine(engine))
        # Written after each: a crash leaves what was found until then.
        result_file.write_text(json.dumps(results))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # vLLM's exit handlers may hang on groups that were destroyed


if __name__ == "__main__":
    main()
