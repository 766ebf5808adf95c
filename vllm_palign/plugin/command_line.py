"""The command line: our options, and how they reach vLLM's config."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from typing import Any

from vllm_palign.compat.hooks import Hook
from vllm_palign.config.config import CACHE_MIB, MAX_STRENGTH, SCOPE, STORE_TIMEOUT
from vllm_palign.config.sources import parse_directions, parse_personas
from vllm_palign.config.store_url import StoreUrl, private_store
from vllm_palign.effect import SCOPES
from vllm_palign.errors import PalignError, PalignStartupError
from vllm_palign.plugin.refusals import refuse_beside_tenants, refuse_front_ends
from vllm_palign.switch import NAME, enable, enabled


class _Option(argparse.Action):
    """Stores its value, or adds to those given before, as ``store`` and ``extend`` do; and a command that palign
    does not let start then ends as with any other wrong option: a message, and exit code 2."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        if isinstance(values, list):
            values = [*(getattr(namespace, self.dest, None) or []), *values]
        setattr(namespace, self.dest, values)
        run = getattr(namespace, "dispatch_function", None)
        if run is not None:
            # Pickled, with the other arguments, to processes of API servers.
            namespace.dispatch_function = functools.partial(_refused_as_usage, run)


class _EnablePlugin(_Option):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        try:
            enable(values)
        except PalignStartupError as error:
            parser.error(error.message)
        super().__call__(parser, namespace, [values], option)


def _refused_as_usage(run: Callable[..., Any], args: Any) -> None:
    try:
        run(args)
    except PalignStartupError as error:
        sys.stderr.write(f"error: palign: {error.message}\n")
        # A registry that does not answer, or is full, is nobody's usage.
        failed = isinstance(error.__cause__, PalignError) and error.__cause__.status >= 500
        raise SystemExit(1 if failed else 2) from None


_OPTIONS = (
    "personas", "directions", "store", "store_timeout", "cache_mib", "max_strength", "tenants", "scope",
)  # fmt: skip


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
            action=_Option,
            default=argparse.SUPPRESS,
            help="Personas to register at start: files under a name or their own, or every .safetensors file "
            "of a folder under its own name. hf://owner/repo[@revision][/file] stands for a file or a folder "
            "on the Hugging Face hub.",
        )
        group.add_argument(
            "--palign-directions",
            metavar="FILE",
            action=_Option,
            default=argparse.SUPPRESS,
            help="What this model needs to make personas of a questionnaire's answers, without being run again: "
            "PUT /v1/personas/ID takes answers as JSON then. Made with `palign-fit directions`; "
            "hf://owner/repo[@revision][/file] stands for a file on the Hugging Face hub.",
        )
        group.add_argument(
            "--palign-store",
            metavar="URL",
            type=StoreUrl,
            action=_Option,
            default=argparse.SUPPRESS,
            help="Registry of personas, shared by all servers that are given the same: "
            "sqlite:///FILE or postgresql://USER@HOST/DATABASE. Default: one of this server's own, "
            "which goes when the server goes.",
        )
        group.add_argument(
            "--palign-store-timeout",
            metavar="SECONDS",
            type=float,
            action=_Option,
            default=argparse.SUPPRESS,
            help=f"How long to wait for the registry. Default {STORE_TIMEOUT}.",
        )
        group.add_argument(
            "--palign-cache-mib",
            metavar="N",
            type=int,
            action=_Option,
            default=argparse.SUPPRESS,
            help="Most MiB of personas that each API server process keeps in memory. "
            f"Default {CACHE_MIB}.",
        )
        group.add_argument(
            "--palign-max-strength",
            metavar="F",
            type=float,
            action=_Option,
            default=argparse.SUPPRESS,
            help="Largest |strength| a request may ask for, and for a blend the largest sum of "
            f"|strength x weight|. Beyond it the request is refused. Default {MAX_STRENGTH}.",
        )
        group.add_argument(
            "--palign-scope",
            choices=SCOPES,
            action=_Option,
            default=argparse.SUPPRESS,
            help="Which tokens are steered where a request does not say: from the first answer on, so that all "
            f"share the prompt's KV, or all, the prompt too. Default {SCOPE}.",
        )
        group.add_argument(
            "--palign-tenants",
            metavar="FILE",
            action=_Option,
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
    if "directions" in given:
        given = {**given, "directions": parse_directions(given["directions"])}
    config[NAME] = {**entry, **given}
    if own_store and "store" not in config[NAME]:
        config[NAME]["store"] = StoreUrl(private_store())
    return config


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
