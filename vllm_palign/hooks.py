"""The means to wrap what vLLM has no extension point for. What is wrapped stands in ``wiring.HOOKS``
(front end, on classes) and ``runner`` (worker, on instances)."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_palign.errors import PalignStartupError

SUPPORTED = "vllm 0.32"


@dataclass(frozen=True)
class Hook:
    """``target`` is a method, ``module:Class.method``; ``parameters`` the ones our wrapper relies on, in
    order and by name; ``wrap`` takes the original function and returns the replacement."""

    target: str
    parameters: tuple[str, ...]
    reason: str
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]]


def install(hooks: tuple[Hook, ...]) -> None:
    """Put every hook in place, or none: raises PalignStartupError if any target has drifted.

    Safe to call again; a target is wrapped once.
    """
    found, problems = [], []
    for hook in hooks:
        module_name, _, path = hook.target.partition(":")
        class_name, _, method = path.partition(".")
        try:
            owner = getattr(importlib.import_module(module_name), class_name)
            raw = inspect.getattr_static(owner, method)
        except (ImportError, AttributeError) as error:
            problems.append(f"{hook.target}: {error}")
            continue
        function = getattr(raw, "__func__", raw)
        if hasattr(function, "palign_original"):
            continue
        problem = _drift(function, hook.parameters)
        if problem:
            problems.append(f"{hook.target}: {problem}")
        found.append((hook, owner, method, raw, function))
    if problems:
        raise PalignStartupError(drift_message(problems))
    for hook, owner, method, raw, function in found:
        wrapper = hook.wrap(function)
        wrapper.palign_original = function  # type: ignore[attr-defined]
        kind = type(raw) if isinstance(raw, (staticmethod, classmethod)) else (lambda f: f)
        setattr(owner, method, kind(wrapper))


def wrap_instance(
    owner: Any, method: str, parameters: tuple[str, ...], wrapper: Callable[..., Any]
) -> None:
    """Shadow ``owner.method`` on this instance. Raises PalignStartupError if its signature has drifted."""
    problem = _drift(getattr(owner, method), ("self", *parameters), bound=True)
    if problem:
        raise PalignStartupError(drift_message([f"{type(owner).__name__}.{method}: {problem}"]))
    setattr(owner, method, wrapper)


def drift_message(problems: list[str]) -> str:
    return (
        f"this release of vllm-palign supports {SUPPORTED}, installed is vllm {vllm_version()}, "
        "whose internals differ: "
        + "; ".join(problems)
        + ". Install a supported vLLM or a newer vllm-palign"
    )


def vllm_version() -> str:
    import vllm

    return str(vllm.__version__)


def _drift(
    function: Callable[..., Any], parameters: tuple[str, ...], bound: bool = False
) -> str | None:
    """What is wrong with the signature, if anything. Further parameters with defaults are no drift."""
    got = list(inspect.signature(function).parameters.values())
    wanted = parameters[1:] if bound else parameters
    names = tuple(parameter.name for parameter in got)
    if names[: len(wanted)] != wanted:
        return f"takes ({', '.join(names)}), wanted ({', '.join(wanted)})"
    extra = [
        parameter.name
        for parameter in got[len(wanted) :]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    return f"needs further arguments {extra}" if extra else None
