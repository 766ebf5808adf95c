"""Every file of examples/ runs as its own docstring says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Server
from vllm_palign import Persona

EXAMPLES = ROOT / "examples"
AGAINST_A_SERVER = {
    "chat.py": [
        "--- plain [no persona]",
        "--- bob, half as strong [bob@",
        ";strength=0.5;scope=answers]",
    ],
    "stream.py": [],
    "blend.py": ["--- {'alice': 1.0, 'bob': 0.0}", "--- {'alice': 0.25, 'bob': 0.75}"],
    "curl.sh": [
        "x-palign-persona: alice@",
        "x-palign-persona: bob@",
        '"code": "persona_not_found"',
    ],
    "enrol.py": ["How well does it describe you?", "made "],
    "enrol.sh": ["# ten items", '"expected_alignment"', "x-palign-persona: me@"],
}
TYPED = "5\n1\n4\n2\n5\n1\n4\n2\n5\n1\n"
"""Answers to ten questions, where an example asks any."""


@pytest.mark.parametrize("name", AGAINST_A_SERVER)
def test_an_example_runs_against_a_server(server: Server, name: str) -> None:
    command = [sys.executable] if name.endswith(".py") else ["bash"]
    done = subprocess.run(
        [*command, EXAMPLES / name], capture_output=True, text=True, timeout=120,
        env={**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1"}, input=TYPED,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    for text in AGAINST_A_SERVER[name]:
        assert text in done.stdout


def test_the_offline_example_runs(
    tiny_model: Path, tiny_personas: tuple[Path, dict[str, Persona]]
) -> None:
    folder = tiny_personas[0]
    arguments = [str(tiny_model), f"alice={folder}/p0.safetensors", f"bob={folder}/p1.safetensors"]
    done = subprocess.run(
        [sys.executable, EXAMPLES / "offline.py", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},  # a process less to start
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for who in ("--- plain", "--- alice", "--- bob", "--- {'mix': {'alice': 0.5, 'bob': 0.5}"):
        assert who in done.stdout


def test_no_example_is_left_out() -> None:
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    assert scripts == {*AGAINST_A_SERVER, "offline.py"}
