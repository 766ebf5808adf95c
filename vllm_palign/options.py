"""The command line: our options, and how they reach vLLM's config."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable
from typing import Any

from vllm_palign.config import (
    CACHE_MIB,
    MAX_STRENGTH,
    STORE_TIMEOUT,
    StoreUrl,
    parse_personas,
)
from vllm_palign.errors import PalignStartupError
from vllm_palign.hooks import Hook
from vllm_palign.plugin import NAME, enable, enabled
from vllm_palign.private import private_store


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
            "--palign-tenants and --api-key (VLLM_API_KEY): vLLM would refuse the tenants' keys; make its "
            "users keys of their own (`palign tenants new-key`)"
        )
    if envs.VLLM_ENABLE_RESPONSES_API_STORE:
        raise PalignStartupError(
            "--palign-tenants and VLLM_ENABLE_RESPONSES_API_STORE: stored responses have no owner, so one "
            "tenant could go on with another's; unset it"
        )


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
