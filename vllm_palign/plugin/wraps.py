"""What the plugin wraps in vLLM's front end and at the door of its workers, and what it refuses."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

from vllm_palign.admission import armed, block_keys, sessions
from vllm_palign.admission.armed import packed_in
from vllm_palign.admission.conversations import note_first_turn, note_first_turn_later
from vllm_palign.admission.front_end import FrontEnd, open_front_end, refuse_unadmitted
from vllm_palign.admission.handoff import granted_here
from vllm_palign.compat.hooks import Hook, Reads
from vllm_palign.compat.versions import warn_unless_proven
from vllm_palign.config.config import PalignConfig
from vllm_palign.effect import block_identity
from vllm_palign.errors import PalignError, PalignStartupError
from vllm_palign.plugin.refusals import KEYED_BY_SALT, refuse_unsupported
from vllm_palign.server.usage import Usage
from vllm_palign.switch import NAME
from vllm_palign.worker.ops import TRACED


def _create_engine_config(original: Callable[..., Any]) -> Callable[..., Any]:
    """Read our configuration, keep what decides about compiled graphs in the config, refuse what cannot
    be steered, and attach the loaded personas to the config for this process's admission."""

    @functools.wraps(original)
    def create_engine_config(self: Any, usage_context: Any = None, headless: bool = False) -> Any:
        warn_unless_proven()
        given = self.additional_config
        config = PalignConfig.read(given)
        # additional_config enters the compile cache's key: the traced code must, a list of personas
        # must not, or every new persona would recompile the model.
        self.additional_config = {**given, NAME: {"traced": TRACED}}
        try:
            vllm_config = original(self, usage_context, headless)
        finally:
            self.additional_config = given
        refuse_unsupported(vllm_config, usage_context)
        connector = getattr(vllm_config.kv_transfer_config, "kv_connector", None)
        over_http = getattr(usage_context, "name", "") == "OPENAI_API_SERVER"
        if over_http:
            # vLLM only logs an endpoint plugin that cannot be imported; here it stops the server.
            importlib.import_module("vllm_palign.endpoint")
        if not headless:
            front_end = open_front_end(
                config,
                vllm_config.model_config,
                over_http=over_http,
                keyed_by_salt=connector in KEYED_BY_SALT,
            )
            front_end.attach(vllm_config)
        return vllm_config

    return create_engine_config


def _process_inputs(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def process_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        front_end = FrontEnd.of(self.vllm_config)
        if front_end is None:
            raise PalignStartupError(
                "the palign plugin is enabled, but this engine was not configured through "
                "EngineArgs.create_engine_config"
            )
        request = original(self, request_id, prompt, params, *args, **kwargs)
        try:
            front_end.admit(request, prompt)
        except PalignError as error:
            if not front_end.over_http:
                raise
            # The class vLLM's server answers with a 400 instead of a 500. Only endpoints outside the
            # middleware's reach get here; the others have refused the request already.
            from vllm.exceptions import VLLMValidationError

            raise VLLMValidationError(error.message, parameter=error.param) from error
        return request

    return process_inputs


def _render_chat(original: Callable[..., Any]) -> Callable[..., Any]:
    """The offline ``LLM`` class renders before it says who is steered."""

    @functools.wraps(original)
    def render_chat(
        self: Any, conversations: Any, chat_params: Any, tok_params: Any = None, **kwargs: Any
    ) -> Any:
        rendered, prompts = original(self, conversations, chat_params, tok_params, **kwargs)
        for messages, prompt in zip(conversations, prompts, strict=True):
            note_first_turn_later(
                self, functools.partial(original, self), messages, chat_params, tok_params, prompt
            )
        return rendered, prompts

    return render_chat


def _render_chat_async(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def render_chat_async(
        self: Any, conversations: Any, chat_params: Any, tok_params: Any = None, **kwargs: Any
    ) -> Any:
        rendered, prompts = await original(self, conversations, chat_params, tok_params, **kwargs)
        granted = granted_here()
        if granted is not None and granted.effect is not None and granted.scope == "answers":
            for messages, prompt in zip(conversations, prompts, strict=True):
                await note_first_turn(
                    self,
                    functools.partial(original, self),
                    messages,
                    chat_params,
                    tok_params,
                    prompt,
                )
        return rendered, prompts

    return render_chat_async


def _extra_keys(original: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM asks for a block's extra keys by this function's module, from scheduler, block pool and offloading
    alike; it takes part in all of them."""

    @functools.wraps(original)
    def extra_keys(request: Any, start_token_idx: int, end_token_idx: int) -> Any:
        keys = original(request, start_token_idx, end_token_idx)
        packed = packed_in(request.sampling_params)
        identity = None if packed is None else block_identity(packed, end_token_idx)
        return keys if identity is None else [*keys, (NAME, identity)]

    return extra_keys


def _add_request(original: Callable[..., Any]) -> Callable[..., Any]:
    """The last step on the front end's side: what it keeps of the request is kept, then it is sealed."""

    @functools.wraps(original)
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        # Before the engine has it: a worker could only stop.
        refuse_unadmitted(request.sampling_params)
        sessions.check(self.request_states.get(request.request_id), request)
        original(self, request, *args, **kwargs)
        state = self.request_states.get(request.request_id)
        sessions.remember(state, request)
        Usage.note(state)
        armed.seal(request)

    return add_request


def _offline_engine(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        front_end = FrontEnd.of(vllm_config)
        if front_end is not None:
            answers: list[Any] = []
            try:
                answers.append(self.collective_rpc(armed.METHOD))
            except Exception as error:
                answers.append(error)
            front_end.check_engines(answers, armed.layers_of_engine(vllm_config))

    return __init__


def _scale_elastic_ep(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def scale_elastic_ep(self: Any, *args: Any, **kwargs: Any) -> None:
        await original(self, *args, **kwargs)
        front_end = FrontEnd.of(self.vllm_config)
        if front_end is not None:
            await front_end.stop_unless_armed(self)

    return scale_elastic_ep


def _preprocess_add_request(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def preprocess_add_request(self: Any, request: Any) -> Any:
        armed.unseal(request)
        return original(self, request)

    return preprocess_add_request


def _initialize_kv_caches(original: Callable[..., Any]) -> Callable[..., Any]:
    """The engine's ranks have loaded their models by then, on every node."""

    @functools.wraps(original)
    def initialize_kv_caches(self: Any, vllm_config: Any) -> Any:
        initialized = original(self, vllm_config)
        block_keys.prove()
        ranks = self.collective_rpc(armed.METHOD)
        armed.check_ranks(ranks, armed.layers_of_engine(vllm_config))
        return initialized

    return initialize_kv_caches


def _init_device(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def init_device(self: Any) -> None:
        # Imported here: front-end processes never need the worker side.
        from vllm_palign.worker.runner import arm_worker

        original(self)
        arm_worker(self.worker)

    return init_device


HOOKS = (
    Hook(
        "vllm.engine.arg_utils:EngineArgs.create_engine_config",
        ("self", "usage_context", "headless"),
        "the one place where every front end, online or offline, makes its config",
        _create_engine_config,
    ),
    Hook(
        "vllm.v1.engine.input_processor:InputProcessor.process_inputs",
        ("self", "request_id", "prompt", "params", "supported_tasks"),
        "the one place every request of every entry point passes, with its cache salt",
        _process_inputs,
    ),
    Hook(
        "vllm.renderers.base:BaseRenderer.render_chat",
        ("self", "conversations", "chat_params", "tok_params"),
        "where a conversation becomes tokens: which of them came before the first answer?",
        _render_chat,
    ),
    Hook(
        "vllm.renderers.base:BaseRenderer.render_chat_async",
        ("self", "conversations", "chat_params", "tok_params"),
        "the same in servers",
        _render_chat_async,
    ),
    Hook(
        "vllm.v1.core.kv_cache_utils:_gen_prompt_embeds_extra_hash_keys",
        ("request", "start_token_idx", "end_token_idx"),
        "what tells a KV block from others of the same tokens, wherever vLLM asks",
        _extra_keys,
    ),
    Hook(
        "vllm.v1.engine.output_processor:OutputProcessor.add_request",
        ("self", "request", "prompt", "parent_req", "request_index", "queue"),
        "tokens by tenant: vLLM's own statistics know no HTTP requests; and the last place before the engine "
        "that ready-made requests pass too",
        _add_request,
    ),
    Hook(
        "vllm.v1.engine.llm_engine:LLMEngine.__init__",
        ("self", "vllm_config", "executor_class", "log_stats"),
        "where an offline engine is up: is it armed?",
        _offline_engine,
    ),
    Hook(
        "vllm.v1.engine.async_llm:AsyncLLM.scale_elastic_ep",
        ("self", "new_data_parallel_size"),
        "engines come and go: are all of them armed?",
        _scale_elastic_ep,
    ),
    Hook(
        "vllm.v1.engine.core:EngineCore.preprocess_add_request",
        ("self", "request"),
        "where an engine takes a request, so that one without the plugin cannot",
        _preprocess_add_request,
    ),
    Hook(
        "vllm.v1.engine.core:EngineCore._initialize_kv_caches",
        ("self", "vllm_config"),
        "the last step of an engine's start that all its ranks take part in",
        _initialize_kv_caches,
    ),
    Hook(
        "vllm.v1.worker.worker_base:WorkerWrapperBase.init_device",
        ("self",),
        "the first call on a worker after plugins are loaded in its process",
        _init_device,
    ),
)
"""In place when the plugin is enabled. The worker's own methods are wrapped in ``worker.runner``."""

READS = (
    Reads(
        "vllm.envs:environment_variables",
        (
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY", "VLLM_ENABLE_RESPONSES_API_STORE",
            "VLLM_SKIP_MODEL_NAME_VALIDATION", "VLLM_USE_RUST_FRONTEND",
        ),
    ),
    Reads("vllm.engine.arg_utils:EngineArgs", ("additional_config",)),
    Reads("vllm.usage.usage_lib:UsageContext", ("OPENAI_API_SERVER", "OPENAI_BATCH_RUNNER", "name")),
    Reads(
        "vllm.config:VllmConfig",
        (
            "additional_config", "cache_config", "compilation_config", "kv_transfer_config",
            "model_config", "parallel_config", "scheduler_config",
        ),
    ),
    Reads(
        "vllm.config:ModelConfig",
        (
            "dtype", "get_head_size", "get_layers_start_end_indices", "get_total_num_hidden_layers",
            "hf_text_config", "is_attention_free", "is_diffusion", "is_encoder_decoder", "is_hybrid",
            "model", "model_arch_config", "runner_type",
        ),
    ),
    Reads(
        "vllm.config:ParallelConfig",
        (
            "distributed_executor_backend", "prefill_context_parallel_size", "tensor_parallel_size",
            "use_ubatching",
        ),
    ),
    Reads("vllm.config:CacheConfig", ("kv_sharing_fast_prefill",)),
    Reads("vllm.config:SchedulerConfig", ("max_num_batched_tokens", "max_num_seqs")),
    Reads("vllm.config:CompilationConfig", ("max_cudagraph_capture_size",)),
    Reads("vllm.config:KVTransferConfig", ("kv_connector", "kv_connector_module_path")),
    Reads("vllm.v1.engine.input_processor:InputProcessor", ("vllm_config",)),
    Reads(
        "vllm.v1.engine:EngineCoreRequest",
        (
            "cache_salt", "prompt_embeds", "prompt_token_ids", "request_id", "resumable",
            "sampling_params",
        ),
    ),
    Reads("vllm.sampling_params:SamplingParams", ("extra_args", "max_tokens")),
    Reads("vllm.v1.request:Request", ("sampling_params",)),
    Reads("vllm.renderers.params:ChatParams", ("chat_template_kwargs",)),
    Reads("vllm.v1.engine.async_llm:AsyncLLM", ("engine_core", "vllm_config")),
    Reads("vllm.v1.engine.core_client:AsyncMPClient", ("_call_utility_async", "core_engines")),
    Reads("vllm.v1.engine.llm_engine:LLMEngine", ("collective_rpc",)),
    Reads("vllm.v1.engine.core:EngineCore", ("collective_rpc",)),
    Reads("vllm.exceptions:VLLMValidationError", ()),
    Reads("vllm.v1.engine.output_processor:OutputProcessor", ("request_states",)),
    Reads(
        "vllm.v1.engine.output_processor:RequestState",
        ("detokenizer", "prompt_len", "prompt_token_ids", "request_id", "request_index"),
    ),
    Reads("vllm.v1.engine.detokenizer:IncrementalDetokenizer", ("num_output_tokens",)),
)  # fmt: skip
"""What the front end reads of vLLM's objects; the worker's part is in ``worker.runner``."""
