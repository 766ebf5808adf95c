"""Whether palign is on in this process: named in ``VLLM_PLUGINS``, which is also what ``--plugin palign`` does."""

from __future__ import annotations

import os
from importlib.metadata import entry_points

from vllm_palign.errors import PalignStartupError

NAME = "palign"

_VARIABLE = "VLLM_PLUGINS"

# Groups whose plugins vLLM loads unless VLLM_PLUGINS leaves them out. Endpoint plugins are the
# opposite: they load only when named, so naming them here would switch foreign routes on.
_DEFAULT_GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)


def enabled() -> bool:
    return NAME in os.environ.get(_VARIABLE, "").split(",")


def enable(name: str) -> None:
    """Turn the installed plugin ``name`` on, in this process and those it starts, leaving on what is on.

    Raises PalignStartupError if no plugin of that name is installed.
    """
    groups = (*_DEFAULT_GROUPS, "vllm.endpoint_plugins")
    installed = {point.name for group in groups for point in entry_points(group=group)}
    if name not in installed:
        raise PalignStartupError(
            f"--plugin {name}: not installed; installed are {', '.join(sorted(installed))}"
        )
    current = os.environ.get(_VARIABLE)
    if current is None:
        active = {point.name for group in _DEFAULT_GROUPS for point in entry_points(group=group)}
    else:
        active = {entry for entry in current.split(",") if entry}
    os.environ[_VARIABLE] = ",".join(sorted(active | {name}))
    if current is not None and name in current.split(","):
        return
    # General plugins were loaded while the parser was built, before this option was read.
    for point in entry_points(group="vllm.general_plugins", name=name):
        point.load()()
