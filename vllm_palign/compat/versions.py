"""The releases of vLLM this package is proven on, and what of 0.27 to 0.33 differs for us in HTTP routes.

(0.27's LoRA layers differ too: ``layer`` asks what they wrap for its width.)

Any other starts too, after one line in the log, if nothing we wrap or read has drifted (``hooks``). See
docs/versions.md for what is known of which.
"""

from __future__ import annotations

import re
from typing import Any

OLDEST, NEWEST = (0, 27), (0, 32)
"""Minor releases, both proven."""
SUPPORTED = "vllm 0.27 to 0.32"


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


def include_instead(app: Any, router: Any) -> None:
    """Give the server the routes of ``router`` in place of its own of the same path and methods.

    vLLM 0.32 does so for every endpoint plugin; until 0.31 its own route, registered first, would answer.
    """
    ours = {(route.path, frozenset(route.methods)) for route in router.routes}
    app.router.routes[:] = [
        route
        for route in app.router.routes
        if (getattr(route, "path", ""), frozenset(getattr(route, "methods", None) or ()))
        not in ours
    ]
    app.include_router(router)
