"""Thin adapters of vLLM's two model runners to the bank's three calls: admit, forget, step.

Everything is wrapped on the instances of one worker, never on classes, so that a drafter or a second
engine in the process is not touched.
"""

from __future__ import annotations

from typing import Any

import torch

from vllm_palign.compat.hooks import Reads, absent, missing, require, uncallable, wrap_instance
from vllm_palign.effect import SCOPES, Effect, first_steered
from vllm_palign.errors import PalignStartupError
from vllm_palign.selection import REQUEST_KEY
from vllm_palign.shape import ModelShape
from vllm_palign.worker.bank import BankShape, OffsetBank
from vllm_palign.worker.isolation import refuse_shared_scales
from vllm_palign.worker.layer import Site, arm, find_sites
from vllm_palign.worker.ops import TRACED
from vllm_palign.worker.self_test import V1_DUMMY, self_test

READS = (
    Reads("vllm.v1.core.sched.output:NewRequestData", ("req_id", "sampling_params")),
    Reads("vllm.sampling_params:SamplingParams", ("extra_args",)),
    Reads("vllm.config:CompilationConfig", ("cudagraph_capture_sizes",)),
    Reads("vllm.platforms.interface:Platform", ("is_pin_memory_available",)),
)
"""What both adapters read of vLLM's objects, and what each reads besides."""
V1_READS = (
    Reads(
        "vllm.v1.core.sched.output:SchedulerOutput",
        ("finished_req_ids", "scheduled_new_reqs", "total_num_scheduled_tokens"),
    ),
)
V2_READS = (
    Reads(
        "vllm.v1.worker.gpu.input_batch:InputBatch",
        ("idx_mapping", "num_tokens", "positions", "query_start_loc", "req_ids"),
    ),
)


def arm_worker(worker: Any) -> None:
    """Make ``worker`` (vLLM's ``Worker`` of one rank) steer: bank and hooks right after it has loaded
    its model, before memory profiling, compilation and graph capture; a self-test after those."""
    if worker.vllm_config.additional_config.get("palign", {}).get("traced") != TRACED:
        raise PalignStartupError(
            "the plugin is enabled, but this engine's config was not made by vLLM's EngineArgs, so "
            "compiled graphs of stock vLLM could be reused; create the engine through LLM, "
            "AsyncEngineArgs or vllm serve"
        )
    load_model, warm_up = worker.load_model, worker.compile_or_warm_up_model
    tested = False

    def load_and_arm(*args: Any, **kwargs: Any) -> None:
        load_model(*args, **kwargs)
        worker.palign_bank = _arm_runner(worker.model_runner, worker.vllm_config, worker.device)
        # Called by name through vLLM's collective_rpc: when metrics are scraped, and when a server starts.
        worker.palign_slots = worker.palign_bank.usage
        worker.palign_armed = armed

    def warm_up_and_test(*args: Any, **kwargs: Any) -> Any:
        nonlocal tested
        times = warm_up(*args, **kwargs)
        self_test(worker.model_runner, worker.palign_bank)
        tested = True
        return times

    def armed() -> dict[str, Any]:
        """What this rank steers with, in plain values; ``tested`` once it has gone through its self-test.
        A worker that is not armed has no such method, and its engine answers with an error."""
        layers = list(worker.palign_bank.shape.layers)
        return {"traced": TRACED, "layers": layers, "scopes": SCOPES, "tested": tested}

    wrap_instance(worker, "load_model", ("load_dummy_weights",), load_and_arm)
    wrap_instance(worker, "compile_or_warm_up_model", (), warm_up_and_test)


def _arm_runner(runner: Any, vllm_config: Any, device: torch.device) -> OffsetBank:
    from vllm.platforms import current_platform

    shape = ModelShape.of(vllm_config.model_config)
    parallel = vllm_config.parallel_config
    start, end = vllm_config.model_config.get_layers_start_end_indices(parallel)
    sites = find_sites(
        runner.get_model(), shape, shape.attention_layers & frozenset(range(start, end))
    )
    refuse_shared_scales(sites, vllm_config.model_config.dtype, device)
    bank = OffsetBank(
        _bank_shape(sites, shape, vllm_config),
        vllm_config.model_config.dtype,
        device,
        pin_memory=device.type != "cpu" and current_platform.is_pin_memory_available(),
    )
    arm(sites, bank)
    if hasattr(runner, "model_state"):
        _follow_v2(runner, bank)
    else:
        _follow_v1(runner, bank)

    from vllm.logger import init_logger

    init_logger("vllm.palign").info(
        "palign: armed %d layers x %d heads, %d slots, %.1f MiB of offsets",
        len(sites),
        sites[0].num_heads,
        bank.shape.slots,
        bank.rows.nbytes / 2**20,
    )
    return bank


def _bank_shape(sites: list[Site], shape: ModelShape, vllm_config: Any) -> BankShape:
    from vllm.distributed import get_tensor_model_parallel_rank

    parallel, scheduler = vllm_config.parallel_config, vllm_config.scheduler_config
    local, ranks = sites[0].num_heads, parallel.tensor_parallel_size
    if local * ranks == shape.num_heads:
        first = get_tensor_model_parallel_rank() * local
    elif local == shape.num_heads:
        first = 0  # attention is replicated, every rank has all heads
    else:
        raise PalignStartupError(
            f"{local} heads on each of {ranks} tensor-parallel ranks, the model has {shape.num_heads}: "
            "palign does not know which heads a rank holds"
        )
    captured = vllm_config.compilation_config.max_cudagraph_capture_size or 0
    tokens = max(scheduler.max_num_batched_tokens, captured)
    return BankShape(
        layers=tuple(site.layer for site in sites),
        num_heads=local,
        first_head=first,
        head_dim=shape.head_dim,
        slots=scheduler.max_num_seqs,
        # Sequence parallelism pads a step to a multiple of the ranks.
        tokens=-(-tokens // ranks) * ranks,
    )


def _follow_v1(runner: Any, bank: OffsetBank) -> None:
    """``v1/worker/gpu_model_runner.py``; the CPU runner inherits it. V1 keeps preempted requests."""
    require(
        missing((*READS, *V1_READS))
        + absent(runner, ("input_batch.req_ids", "positions", "query_start_loc.gpu", "vllm_config"))
        + uncallable(runner, "_dummy_run", 1, **V1_DUMMY, uniform_decode=True)
    )
    update_states, prepare_inputs = runner._update_states, runner._prepare_inputs

    def _update_states(scheduler_output: Any) -> Any:
        # Finished first: an aborted id may come back in the same step as another request.
        for request_id in scheduler_output.finished_req_ids:
            bank.forget(request_id)
        for new in scheduler_output.scheduled_new_reqs:
            _admit(bank, new)
        return update_states(scheduler_output)

    def _prepare_inputs(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        prepared = prepare_inputs(scheduler_output, num_scheduled_tokens)
        bank.step(
            runner.input_batch.req_ids,
            runner.query_start_loc.gpu,
            scheduler_output.total_num_scheduled_tokens,
            runner.positions,
        )
        return prepared

    wrap_instance(runner, "_update_states", ("scheduler_output",), _update_states)
    wrap_instance(
        runner, "_prepare_inputs", ("scheduler_output", "num_scheduled_tokens"), _prepare_inputs
    )


def _follow_v2(runner: Any, bank: OffsetBank) -> None:
    """``v1/worker/gpu/model_states/interface.py``, V2's own seam. V2 removes a preempted request and
    adds it again."""
    require(
        missing((*READS, *V2_READS))
        + absent(runner, ("vllm_config",))
        + uncallable(runner, "_dummy_run", 1)
    )
    state = runner.model_state
    add, remove, preprocess = state.add_request, state.remove_request, state.preprocess_state

    def add_request(req_index: int, new_req_data: Any) -> None:
        if _admit(bank, new_req_data):
            bank.seat(new_req_data.req_id, req_index)
        add(req_index, new_req_data)

    def remove_request(req_id: str) -> None:
        bank.forget(req_id)
        remove(req_id)

    def preprocess_state(input_batch: Any, *args: Any, **kwargs: Any) -> None:
        preprocess(input_batch, *args, **kwargs)
        bank.step(
            input_batch.req_ids,
            input_batch.query_start_loc,
            input_batch.num_tokens,
            input_batch.positions,
            seats=input_batch.idx_mapping,
        )

    wrap_instance(state, "add_request", ("req_index", "new_req_data"), add_request)
    wrap_instance(state, "remove_request", ("req_id",), remove_request)
    wrap_instance(
        state,
        "preprocess_state",
        ("input_batch", "block_tables", "kv_cache_config", "num_computed_tokens"),
        preprocess_state,
    )


def _admit(bank: OffsetBank, new_request: Any) -> bool:
    """Returns whether the request is steered."""
    params = new_request.sampling_params
    packed = (params.extra_args or {}).get(REQUEST_KEY) if params is not None else None
    # Also for plain requests: a streaming session may come back under its id without a persona.
    bank.forget(new_request.req_id)
    if packed is None:
        return False
    bank.admit(new_request.req_id, Effect.unpack(packed), first_steered(packed))
    return True
