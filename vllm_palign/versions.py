"""The releases of vLLM this package is proven on. Any other starts too, after one line in the log, if
nothing we wrap or read has drifted (``hooks``)."""

from __future__ import annotations

import re

OLDEST, NEWEST = (0, 32), (0, 32)
"""Minor releases, both proven."""
SUPPORTED = "vllm 0.32"


def vllm_version() -> str:
    import vllm

    return str(vllm.__version__)


def is_proven(version: str) -> bool:
    """Whether this release is proven, ``"0.32.0+cpu"`` say; not so what has no number."""
    minor = re.match(r"(\d+)\.(\d+)", version)
    return minor is not None and OLDEST <= (int(minor[1]), int(minor[2])) <= NEWEST


def warn_unless_proven() -> None:
    """One line for whoever reads the log of a server that behaves oddly."""
    version = vllm_version()
    if not is_proven(version):
        from vllm.logger import init_logger

        init_logger("vllm.palign").warning(
            "palign: proven on %s, installed is vllm %s; all that palign wraps and reads is in place, "
            "so it starts. Run its tests before you rely on it",
            SUPPORTED,
            version,
        )
