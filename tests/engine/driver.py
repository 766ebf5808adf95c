"""Runs a list of engines in one process: ``driver.py job.json result.json``.

vLLM keeps process-wide state (plugins, distributed groups, compile caches, environment), so no test
creates an engine in pytest's own process. A job is ``{"engines": [...]}``; the keys of an engine are
read in ``run_engine`` and those of a request in ``_sampling``.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tampering import RPCS, TAMPERINGS


def run_engine(job: dict[str, Any]) -> dict[str, Any]:
    """Start one engine, answer its batches in order, and say what the bank holds afterwards.

    An exception, of the start or of a request, is a result: ``{"error": {"type", "message"}}``.
    """
    from vllm import LLM, EngineArgs

    started = time.monotonic()
    kwargs = dict(job.get("kwargs", {}))
    if "personas" in job:
        kwargs["additional_config"] = {"palign": {"personas": job["personas"]}}
    tamper = TAMPERINGS[job["tamper"]] if "tamper" in job else contextlib.nullcontext
    llm = None
    try:
        with tamper():
            if job.get("only_config"):
                config = EngineArgs(job["model"], **kwargs).create_engine_config()
                return {"config_hash": config.compute_hash()}
            llm = LLM(job["model"], **kwargs)
        batches = [
            _call(llm, step) if isinstance(step, dict) else _answer(llm, step)
            for step in job.get("batches", [])
        ]
        # vLLM tells its workers which requests are over with the next step, if there is one.
        llm.llm_engine.step()
        result = {
            "batches": batches,
            "config_hash": llm.llm_engine.vllm_config.compute_hash(),
            "bank": llm.collective_rpc(_inspect_bank),
            "metrics": _metrics(llm),
            "schedules_ahead": llm.llm_engine.engine_core.engine_core.batch_queue is not None,
            "compiled": llm.llm_engine.vllm_config.compilation_config.mode != 0,
        }
    except Exception as error:
        traceback.print_exc()
        result = {"error": {"type": type(error).__name__, "message": str(error)}}
    finally:
        del llm
        _free()
    return {**result, "seconds": time.monotonic() - started}


def _call(llm: Any, step: dict[str, Any]) -> Any:
    """A step between batches: ``{"call": method of LLM, "args": [...], "kwargs": {...}}``, or ``{"rpc":
    name}`` for something done in every worker, whose results it then is; with ``"between": batch`` it is done
    after the third step of that batch, whose answers it then is. ``{"ready_made": request}`` is a request in
    the engine's own form; the type and message of what the engine says to it. With ``"straight": True`` the
    front end never sees it. ``{"crowd": {...}}`` are the arguments of ``_crowd``."""
    if "ready_made" in step:
        return _ask_ready_made(llm, step["ready_made"], straight=step.get("straight", False))
    if "crowd" in step:
        return _crowd(llm, **step["crowd"])
    if "between" in step:
        return _interrupted(llm, step["between"], RPCS[step["rpc"]])
    if "rpc" in step:
        return llm.collective_rpc(RPCS[step["rpc"]])
    getattr(llm, step["call"])(*step.get("args", ()), **step.get("kwargs", {}))
    return None


def _interrupted(llm: Any, batch: list[dict[str, Any]], rpc: Any) -> list[dict[str, Any]]:
    step, steps = llm.llm_engine.step, itertools.count(1)

    def counted() -> Any:
        outputs = step()
        if next(steps) == 3:
            llm.collective_rpc(rpc)
        return outputs

    with mock.patch.object(llm.llm_engine, "step", counted):
        return _answer(llm, batch)


def _crowd(
    llm: Any, requests: list[dict[str, Any]], *, arrivals: int, abort: float, seed: int
) -> list[dict[str, Any] | None]:
    """Up to ``arrivals`` requests come before each step, and a share ``abort`` of them goes again while it runs;
    an answer each, None for those."""
    rng = random.Random(seed)
    answers: list[dict[str, Any] | None] = [None] * len(requests)
    leaving: dict[str, int] = {}
    engine, waiting = llm.llm_engine, iter(range(len(requests)))
    coming: int | None = next(waiting)
    while coming is not None or engine.has_unfinished_requests():
        for _ in range(rng.randint(0, arrivals)):
            if coming is None:
                break
            request, name = requests[coming], str(coming)
            prompt = {"prompt_token_ids": request["prompt"]}
            engine.add_request(name, prompt, _sampling(request))
            if rng.random() < abort:
                leaving[name] = rng.randint(1, 6)
            coming = next(waiting, None)
        for output in engine.step():
            if output.finished:
                answers[int(output.request_id)] = _plain(output, output.outputs[0])
                leaving.pop(output.request_id, None)
        for name in list(leaving):
            leaving[name] -= 1
            if not leaving[name]:
                del leaving[name]
                engine.abort_request([name])
    return answers


def _ask_ready_made(llm: Any, request: dict[str, Any], *, straight: bool) -> list[str]:
    from vllm.v1.engine import EngineCoreRequest

    params = _sampling(request)
    made = EngineCoreRequest(
        request_id="ready-made", prompt_token_ids=request["prompt"], mm_features=None, sampling_params=params,
        pooling_params=None, arrival_time=time.time(), lora_request=None, cache_salt=None, data_parallel_rank=None,
    )  # fmt: skip
    try:
        if straight:
            llm.llm_engine.engine_core.add_request(made)
            return ["", ""]
        llm.llm_engine.add_request("ready-made", made, params)
    except Exception as error:
        return [type(error).__name__, str(error)]
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    return ["", ""]


def _answer(llm: Any, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An entry for each answer, in order; a request with n > 1 has n of them."""
    outputs = llm.generate(
        [{"prompt_token_ids": request["prompt"]} for request in batch],
        [_sampling(request) for request in batch],
        lora_request=[_lora(request) for request in batch],
        priority=[request.get("priority", 0) for request in batch],
        use_tqdm=False,
    )
    return [_plain(output, answer) for output in outputs for answer in output.outputs]


def _sampling(request: dict[str, Any]) -> Any:
    from vllm import SamplingParams

    from vllm_palign import persona_args

    persona = request.get("persona")
    options = {
        "max_tokens": request.get("max_tokens", 4),
        "temperature": 0.0,
        "ignore_eos": True,
        "detokenize": False,
        # Everything: the test compares whole distributions.
        "logprobs": -1,
        "prompt_logprobs": -1 if request.get("prompt_distributions", True) else None,
        "extra_args": None if persona is None else persona_args(persona),
    }
    return SamplingParams(**options | request.get("sampling", {}))


def _lora(request: dict[str, Any]) -> Any:
    from vllm.lora.request import LoRARequest

    path = request.get("lora")
    return None if path is None else LoRARequest(Path(path).name, 1, path)


def _plain(output: Any, answer: Any) -> dict[str, Any]:
    """``distributions`` [T-1, V]: row t is what the model says after token t of prompt + answer.
    Without prompt distributions the rows of the prompt's tokens but its last are missing."""
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


def _metrics(llm: Any) -> dict[str, float]:
    """vLLM's counters, where the engine keeps statistics (``disable_log_stats=False``)."""
    if llm.llm_engine.logger_manager is None:
        return {}
    return {
        metric.name.removeprefix("vllm:"): metric.value
        for metric in llm.get_metrics()
        if hasattr(metric, "value")
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


def _collect_only_what_is_new() -> Callable[[], None]:
    """vLLM looks through the whole heap nine times an engine, most of it modules; half the time of a tiny
    one. Returns what takes all that is there now out of that; vLLM may not put it back."""
    freeze = gc.freeze
    gc.freeze = gc.unfreeze = lambda: None
    return freeze


def main() -> None:
    _inspect_models_here()
    freeze = _collect_only_what_is_new()
    job_file, result_file = map(Path, sys.argv[1:3])
    job = json.loads(job_file.read_text())
    results = []
    for engine in job["engines"]:
        freeze()
        results.append(run_engine(engine))
        # Written after each: a crash leaves what was found until then.
        result_file.write_text(json.dumps(results))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # vLLM's exit handlers may hang on groups that were destroyed


if __name__ == "__main__":
    main()
