"""What the plugin wraps in vLLM's front end and at the door of its workers, and what it refuses."""

from __future__ import annotations

import argparse
import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

from vllm_palign.admission import front_end
from vllm_palign.config import (
    CACHE_MIB,
    MAX_STRENGTH,
    STORE_TIMEOUT,
    PalignConfig,
    StoreUrl,
    parse_personas,
)
from vllm_palign.errors import PalignError, PalignStartupError
from vllm_palign.hooks import Hook
from vllm_palign.ops import TRACED
from vllm_palign.plugin import NAME, enable, enabled
from vllm_palign.registry.private import private_store
from vllm_palign.usage import Usage

# KV connectors that tell blocks apart by vLLM's block hashes, which contain the salt. Others key on
# token ids alone and would hand one persona's KV to another.
_SAFE_CONNECTORS = {
    "OffloadingConnector",
    "MooncakeStoreConnector",
    "LMCacheMPConnector",
}


class _EnablePlugin(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        try:
            enable(values)
        except PalignStartupError as error:
            parser.error(error.message)
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest, None) or []), values])


_OPTIONS = ("personas", "store", "store_timeout", "cache_mib", "max_strength", "tenants")


def _add_cli_args(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def add_cli_args(parser: Any) -> Any:
        parser = original(parser)
        group = parser.add_argument_group(
            title="palign", description="Personality steering: each request with its own persona."
        )
        group.add_argument(
            "--plugin",
            metavar="NAME",
            action=_EnablePlugin,
            default=argparse.SUPPRESS,
            help="Turn the installed plugin NAME on, leaving other plugins as they are. Repeatable. "
            "Steering needs --plugin palign.",
        )
        group.add_argument(
            "--palign-personas",
            metavar="NAME=PATH|DIR",
            nargs="+",
            action="extend",
            default=argparse.SUPPRESS,
            help="Personas to register at start: files under a name, or every .safetensors file of a "
            "folder under its own name. hf://owner/repo[@revision][/file] stands for a file or a folder "
            "on the Hugging Face hub.",
        )
        group.add_argument(
            "--palign-store",
            metavar="URL",
            type=StoreUrl,
            default=argparse.SUPPRESS,
            help="Registry of personas, shared by all servers that are given the same: "
            "sqlite:///FILE or postgresql://USER@HOST/DATABASE. Default: one of this server's own, "
            "which goes when the server goes.",
        )
        group.add_argument(
            "--palign-store-timeout",
            metavar="SECONDS",
            type=float,
            default=argparse.SUPPRESS,
            help=f"How long to wait for the registry. Default {STORE_TIMEOUT}.",
        )
        group.add_argument(
            "--palign-cache-mib",
            metavar="N",
            type=int,
            default=argparse.SUPPRESS,
            help="Most MiB of personas that each API server process keeps in memory. "
            f"Default {CACHE_MIB}.",
        )
        group.add_argument(
            "--palign-max-strength",
            metavar="F",
            type=float,
            default=argparse.SUPPRESS,
            help="Largest |strength| a request may ask for, and for a blend the largest sum of "
            f"|strength x weight|. Beyond it the request is refused. Default {MAX_STRENGTH}.",
        )
        group.add_argument(
            "--palign-tenants",
            metavar="FILE",
            default=argparse.SUPPRESS,
            help="Tenants, their API keys and rights; made with `palign tenants`, read again when it "
            "changes. Default: one tenant, everybody, and vLLM's --api-key as usual.",
        )
        return parser

    return add_cli_args


def _from_cli_args(original: Callable[..., Any]) -> Callable[..., Any]:
    """Options to ``args.additional_config["palign"]``, which vLLM carries wherever the config goes."""

    @functools.wraps(original)
    def from_cli_args(cls: Any, args: Any) -> Any:
        given = {
            key: getattr(args, f"palign_{key}")
            for key in _OPTIONS
            if hasattr(args, f"palign_{key}")
        }
        if given and not enabled():
            raise PalignStartupError("--palign-* options need --plugin palign")
        if enabled():
            refuse_front_ends(args)
            args.additional_config = _configured(
                args.additional_config, given, own_store=not getattr(args, "headless", False)
            )
            if isinstance(entry := args.additional_config.get(NAME), dict) and "tenants" in entry:
                refuse_beside_tenants(args)
            # Consumed: API server processes get these args again.
            for key in given:
                delattr(args, f"palign_{key}")
        return original(cls, args)

    return from_cli_args


def _configured(additional: Any, given: dict[str, Any], *, own_store: bool) -> Any:
    """``additional_config`` with the options ``given`` on the command line and, where no registry is named,
    one of this server's own: made here, once, for all API server processes."""
    config = dict(additional or {})
    entry = config.get(NAME, {})
    if not isinstance(entry, dict):
        return additional  # PalignConfig.read says what is wrong with it
    twice = sorted(set(entry) & set(given))
    if twice:
        raise PalignStartupError(
            f'{twice} given both as --palign option and in additional_config["palign"]'
        )
    if "personas" in given:
        given = {**given, "personas": parse_personas(given["personas"])}
    config[NAME] = {**entry, **given}
    if own_store and "store" not in config[NAME]:
        config[NAME]["store"] = StoreUrl(private_store())
    return config


def refuse_front_ends(args: Any) -> None:
    """Front ends that our middleware is not part of would answer plainly."""
    if getattr(args, "grpc", False):
        raise PalignStartupError(
            "--grpc has no middleware, so personas would be ignored; serve HTTP"
        )
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0", "False", "false"):
        raise PalignStartupError(
            "VLLM_USE_RUST_FRONTEND bypasses Python middleware, so personas would be ignored; unset it"
        )


def refuse_beside_tenants(args: Any) -> None:
    """Settings of vLLM that would keep tenants out or let them meet."""
    from vllm import envs

    if getattr(args, "api_key", None) or envs.VLLM_API_KEY:
        raise PalignStartupError(
            "--palign-tenants and --api-key (VLLM_API_KEY): vLLM would refuse the tenants' keys; give its "
            "key to a tenant instead (`palign tenants new-key`)"
        )
    if envs.VLLM_ENABLE_RESPONSES_API_STORE:
        raise PalignStartupError(
            "--palign-tenants and VLLM_ENABLE_RESPONSES_API_STORE: stored responses have no owner, so one "
            "tenant could go on with another's; unset it"
        )


def _create_engine_config(original: Callable[..., Any]) -> Callable[..., Any]:
    """Read our configuration, keep what decides about compiled graphs in the config, refuse what cannot
    be steered, and hang the loaded personas on the config for this process's admission."""

    @functools.wraps(original)
    def create_engine_config(self: Any, usage_context: Any = None, headless: bool = False) -> Any:
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
        over_http = getattr(usage_context, "name", "") == "OPENAI_API_SERVER"
        if over_http:
            # vLLM only logs an endpoint plugin that cannot be imported; here it stops the server.
            importlib.import_module("vllm_palign.endpoint")
        if not headless:
            vllm_config.palign = front_end(config, vllm_config.model_config, over_http=over_http)
        return vllm_config

    return create_engine_config


def refuse_unsupported(vllm_config: Any, usage_context: Any) -> None:
    """Raises PalignStartupError with every setting under which offsets would not, or wrongly, apply."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    problems = []
    if getattr(usage_context, "name", "") == "OPENAI_BATCH_RUNNER":
        problems.append("vllm run-batch has no middleware; use the LLM class or a server")
    if model.runner_type != "generate":
        problems.append(f"the model runs as {model.runner_type!r}; only text generation is steered")
    if model.is_encoder_decoder:
        problems.append("encoder-decoder models are not steered")
    if model.is_attention_free:
        problems.append("the model has no attention")
    if getattr(model, "is_diffusion", False):
        problems.append("diffusion language models are not steered")
    if parallel.use_ubatching:
        problems.append("dual batch overlap splits steps; turn --enable-dbo / --ubatch-size off")
    if parallel.prefill_context_parallel_size > 1:
        problems.append("--prefill-context-parallel-size splits the tokens of a step")
    if vllm_config.cache_config.kv_sharing_fast_prefill:
        problems.append("--kv-sharing-fast-prefill runs layers on part of the tokens")
    connector = getattr(vllm_config.kv_transfer_config, "kv_connector", None)
    if connector is not None and connector not in _SAFE_CONNECTORS:
        problems.append(
            f"KV connector {connector!r} is not known to keep cache salts apart "
            f"(known: {', '.join(sorted(_SAFE_CONNECTORS))})"
        )
    if problems:
        raise PalignStartupError("palign cannot steer this configuration: " + "; ".join(problems))


def _process_inputs(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        palign = getattr(self.vllm_config, NAME, None)
        if palign is None:
            raise PalignStartupError(
                "the palign plugin is enabled, but this engine was not configured through "
                "EngineArgs.create_engine_config"
            )
        request = original(self, *args, **kwargs)
        try:
            palign.admit(request)
        except PalignError as error:
            if not palign.over_http:
                raise
            # The class vLLM's server answers with a 400 instead of a 500. Only endpoints outside the
            # middleware's reach get here; the others have refused the request already.
            from vllm.exceptions import VLLMValidationError

            raise VLLMValidationError(error.message, parameter=error.param) from error
        return request

    return process_inputs


def _add_request(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        original(self, request, *args, **kwargs)
        Usage.note(self.request_states.get(request.request_id))

    return add_request


def _init_device(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def init_device(self: Any) -> None:
        # Imported here: front-end processes never need the worker side.
        from vllm_palign.runner import arm_worker

        original(self)
        arm_worker(self.worker)

    return init_device


COMMAND_LINE = (
    Hook(
        "vllm.engine.arg_utils:EngineArgs.add_cli_args",
        ("parser",),
        "vLLM has no way for a plugin to add options",
        _add_cli_args,
    ),
    Hook(
        "vllm.engine.arg_utils:EngineArgs.from_cli_args",
        ("cls", "args"),
        "the options have to reach additional_config",
        _from_cli_args,
    ),
)
"""In place as soon as the package is installed: ``--plugin`` must be known to be usable."""

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
        "vllm.v1.engine.output_processor:OutputProcessor.add_request",
        ("self", "request", "prompt", "parent_req", "request_index", "queue"),
        "tokens by tenant: vLLM's own statistics know no HTTP requests",
        _add_request,
    ),
    Hook(
        "vllm.v1.worker.worker_base:WorkerWrapperBase.init_device",
        ("self",),
        "the first call on a worker after plugins are loaded in its process",
        _init_device,
    ),
)
"""In place when the plugin is enabled. The worker's own methods are wrapped in ``runner``."""
