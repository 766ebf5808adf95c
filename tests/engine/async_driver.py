"""Runs ``AsyncLLM`` jobs in one process: ``async_driver.py job.json result.json``, as ``driver.py`` does.

A job's ``scenarios`` are functions of this file, each given the running engine; what they return is the result.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from unittest import mock

from driver import _inspect_models_here


@contextlib.contextmanager
def engine_processes_without_the_plugin() -> Any:
    """As with a headless node started without ``--plugin palign``: its engine is stock."""
    from vllm.v1.engine.utils import CoreEngineProcManager

    start = CoreEngineProcManager.__init__

    def unarmed(self: Any, *args: Any, **kwargs: Any) -> None:
        with mock.patch.dict(os.environ, {"VLLM_PLUGINS": ""}):
            start(self, *args, **kwargs)

    with mock.patch.object(CoreEngineProcManager, "__init__", unarmed):
        yield


def params(persona: Any, **options: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from vllm_palign import persona_args

    return SamplingParams(
        **{
            "max_tokens": 4,
            "temperature": 0.0,
            "ignore_eos": True,
            "detokenize": False,
            "output_kind": RequestOutputKind.DELTA,
            "extra_args": None if persona is None else persona_args(persona),
            **options,
        }
    )


async def answer(engine: Any, prompt: Any, sampling: Any, name: str) -> dict[str, Any]:
    """What became of one request: its tokens, of how many prompt tokens KV was there, or its error."""
    tokens: list[int] = []
    cached, reason = None, None
    try:
        async for output in engine.generate(prompt, sampling, name):
            (sample,) = output.outputs
            tokens += sample.token_ids
            cached = output.num_cached_tokens if cached is None else cached
            reason = sample.finish_reason
    except Exception as error:
        cause = error.__cause__ or error
        return {"error": type(cause).__name__, "message": str(cause), "tokens": tokens}
    return {"tokens": tokens, "cached": cached, "reason": reason}


async def session(engine: Any, parts: list[tuple[list[int], Any]], name: str) -> Any:
    """A streaming-input session; each part is (tokens, persona), sent when the one before has answered."""
    from vllm.engine.protocol import StreamingInput

    heard = asyncio.Event()

    async def inputs() -> AsyncGenerator[Any, None]:
        for tokens, persona in parts:
            heard.clear()
            yield StreamingInput(
                # A list of its own: vLLM goes on with it for the session.
                prompt={"prompt_token_ids": list(tokens)},
                sampling_params=params(persona, max_tokens=1),
            )
            await heard.wait()

    tokens: list[int] = []
    try:
        async for output in engine.generate(inputs(), params(parts[0][1]), name):
            tokens += output.outputs[0].token_ids if output.outputs else []
            heard.set()
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error), "tokens": tokens}
    return {"tokens": tokens}


async def sessions(engine: Any, job: dict[str, Any]) -> Any:
    """Sessions that keep and that change their effect, and what their prompts find in the KV cache after."""
    first, second = job["parts"]
    found = {}
    for name, personas in job["sessions"].items():
        parts = list(zip((first, second), personas, strict=True))
        found[name] = await session(engine, parts, name)
    for name in (None, "alice", "bob"):
        prompt = {"prompt_token_ids": [*first, *second, *first[:8]]}
        persona = None if name is None else {"id": name, "scope": "all"}
        found[f"after, {name}"] = await answer(engine, prompt, params(persona), f"{name}")
    return found


async def asked(engine: Any, job: dict[str, Any]) -> Any:
    """A plain request and a steered one."""
    prompt = {"prompt_token_ids": job["prompt"]}
    return [await answer(engine, prompt, params(name), f"{name}") for name in (None, "alice")]


async def engines_asked(engine: Any, job: dict[str, Any]) -> Any:
    """What the front end says of its engines, as a server does at its start."""
    from vllm_palign.admission.front_end import FrontEnd

    front_end = FrontEnd.of(engine.vllm_config)
    try:
        await front_end.ask_engines(engine)
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error), **await refusal(engine, job)}
    return {"error": None, **await refusal(engine, job)}


async def straight(engine: Any, job: dict[str, Any]) -> Any:
    """What becomes of ready-made requests that go to the engine's process past everything of ours in the front
    end: one that names a persona, one whose admitted offsets have changed on the way."""
    from vllm.v1.engine import EngineCoreRequest

    from vllm_palign.admission import armed
    from vllm_palign.admission.front_end import FrontEnd

    def ready_made(name: str) -> Any:
        return EngineCoreRequest(
            request_id=name, prompt_token_ids=job["prompt"], mm_features=None, sampling_params=params("alice"),
            pooling_params=None, arrival_time=time.time(), lora_request=None, cache_salt=None,
            data_parallel_rank=None, external_req_id=name,
        )  # fmt: skip

    unadmitted, changed, admitted = map(ready_made, ("unadmitted", "changed", "admitted"))
    for request in (changed, admitted):
        FrontEnd.of(engine.vllm_config).admit(request, {})
        armed.seal(request)
    (packed,) = changed.sampling_params.extra_args.values()
    packed["offsets"] = packed["offsets"][:-4] + bytes(4)
    return {
        request.request_id: await answer_straight(engine, request)
        for request in (unadmitted, changed, admitted)
    }


async def answer_straight(engine: Any, request: Any) -> str:
    """The reason with which the engine's process finished ``request``."""
    from vllm.v1.engine.output_processor import RequestOutputCollector

    params = request.sampling_params
    queue = RequestOutputCollector(params.output_kind, request.request_id)
    # Not what we have wrapped it in.
    add = type(engine.output_processor).add_request.__wrapped__
    add(engine.output_processor, request, None, None, 0, queue)
    engine._run_output_handler()
    await engine.engine_core.add_request_async(request)
    while True:
        output = await asyncio.wait_for(queue.get(), 60)
        if output.finished:
            return str(output.outputs[0].finish_reason)


async def armed_engine(engine: Any, job: dict[str, Any]) -> Any:
    return {"straight": await straight(engine, job), **await engines_asked(engine, job)}


async def scaled(engine: Any, job: dict[str, Any]) -> Any:
    """Elastic scaling to the size it has, which changes nothing, is looked at all the same."""
    try:
        await engine.scale_elastic_ep(1)
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error), **await refusal(engine, job)}
    return {"error": None, **await refusal(engine, job)}


async def refusal(engine: Any, job: dict[str, Any]) -> dict[str, Any]:
    plain, steered = await asked(engine, job)
    return {"plain": plain, "steered": steered}


SCENARIOS = {
    "sessions": sessions,
    "asked": asked,
    "engines_asked": engines_asked,
    "armed_engine": armed_engine,
    "scaled": scaled,
}
TAMPERINGS = {"engine_processes_without_the_plugin": engine_processes_without_the_plugin}


async def run(job: dict[str, Any]) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    kwargs = {**job["kwargs"], "additional_config": {"palign": {"personas": job["personas"]}}}
    with TAMPERINGS.get(job.get("tamper", ""), contextlib.nullcontext)():
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(job["model"], **kwargs))
    try:
        return [await SCENARIOS[name](engine, job) for name in job["scenarios"]]
    finally:
        engine.shutdown()


def main() -> None:
    _inspect_models_here()
    job_file, result_file = map(Path, sys.argv[1:3])
    results = []
    for job in json.loads(job_file.read_text())["engines"]:
        try:
            results.append(asyncio.run(run(job)))
        except Exception as error:
            traceback.print_exc()
            results.append({"error": type(error).__name__, "message": str(error)})
        result_file.write_text(json.dumps(results))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
