"""The means to wrap what vLLM has no extension point for, and to see at start that what we wrap and read
is as we know it. The tables are ``plugin.wraps.HOOKS`` and ``READS`` (front end, on classes) and in
``worker.runner`` (worker, on instances)."""

from __future__ import annotations

import dis
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from vllm_palign.compat.versions import SUPPORTED, vllm_version
from vllm_palign.errors import PalignStartupError


@dataclass(frozen=True)
class Hook:
    """``target`` is a method, ``module:Class.method``, or a function, ``module:name``; ``parameters`` the ones our wrapper relies on, in
    order and by name; ``wrap`` takes the original function and returns the replacement."""

    target: str
    parameters: tuple[str, ...]
    reason: str
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Reads:
    """``target`` is a class, ``module:Class``, and ``names`` the attributes of its objects that we read; or it is
    a table, and they are keys."""

    target: str
    names: tuple[str, ...]


def install(hooks: tuple[Hook, ...], reads: tuple[Reads, ...] = ()) -> None:
    """Put every hook in place, or none: raises PalignStartupError if any target has drifted or anything
    of ``reads`` is gone.

    Safe to call again; a target is wrapped once.
    """
    found, problems = [], missing(reads)
    for hook in hooks:
        module, _, name = hook.target.partition(":")
        cls, _, method = name.rpartition(".")
        try:
            owner = _find(f"{module}:{cls}") if cls else importlib.import_module(module)
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
    require(problems)
    for hook, owner, method, raw, function in found:
        wrapper = hook.wrap(function)
        wrapper.palign_original = function  # type: ignore[attr-defined]
        kind = type(raw) if isinstance(raw, (staticmethod, classmethod)) else (lambda f: f)
        setattr(owner, method, kind(wrapper))


def missing(reads: tuple[Reads, ...]) -> list[str]:
    """What of ``reads`` this vLLM does not have: where an attribute is gone we would find out with the
    first request, and where it has a default never."""
    problems = []
    for read in reads:
        try:
            found = _find(read.target)
        except (ImportError, AttributeError) as error:
            problems.append(f"{read.target}: {error}")
            continue
        known = _attributes(found) if isinstance(found, type) else found
        gone = [name for name in read.names if name not in known]
        if gone:
            problems.append(f"{read.target}: has no {', '.join(gone)}")
    return problems


def absent(owner: Any, paths: tuple[str, ...]) -> list[str]:
    """What of the dotted ``paths`` the object ``owner`` does not have."""
    problems = []
    for path in paths:
        try:
            attrgetter(path)(owner)
        except AttributeError as error:
            problems.append(f"{type(owner).__name__}.{path}: {error}")
    return problems


def uncallable(owner: Any, method: str, *args: Any, **kwargs: Any) -> list[str]:
    """Why ``owner.method`` does not take these arguments, if it does not."""
    try:
        inspect.signature(getattr(owner, method)).bind(*args, **kwargs)
    except (AttributeError, TypeError) as error:
        return [f"{type(owner).__name__}.{method}: {error}"]
    return []


def require(problems: list[str]) -> None:
    """Raises PalignStartupError with all of ``problems``, if there are any."""
    if problems:
        raise PalignStartupError(
            f"this release of vllm-palign supports {SUPPORTED}, installed is vllm {vllm_version()}, "
            "whose internals differ: "
            + "; ".join(problems)
            + ". Install a supported vLLM or a newer vllm-palign"
        )


def wrap_instance(
    owner: Any, method: str, parameters: tuple[str, ...], wrapper: Callable[..., Any]
) -> None:
    """Shadow ``owner.method`` on this instance. Raises PalignStartupError if its signature has drifted."""
    problem = _drift(getattr(owner, method), ("self", *parameters), bound=True)
    require([f"{type(owner).__name__}.{method}: {problem}"] if problem else [])
    setattr(owner, method, wrapper)


def _find(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _attributes(owner: type) -> set[str]:
    """What objects of ``owner`` have: members, declared fields, and what their constructor sets."""
    known: set[str] = set()
    for base in owner.__mro__:
        known |= vars(base).keys() | getattr(base, "__annotations__", {}).keys()
        for method in ("__init__", "__post_init__"):
            function = inspect.unwrap(vars(base).get(method, owner))
            if inspect.isfunction(function):
                steps = dis.get_instructions(function)
                known |= {step.argval for step in steps if step.opname == "STORE_ATTR"}
    return known


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
