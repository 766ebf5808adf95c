"""Two servers for this folder: the demo model as users run it, a tiny one for many random requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ONE_PROCESS, TINY_SERVER, Server, start_server, stop_server
from tests.directions import tiny_directions
from tests.personas import SMOLLM2
from vllm_palign import Persona
from vllm_palign.directions import to_bytes


@pytest.fixture(scope="package")
def server(
    demo_model: Path,
    smol_personas: tuple[Path, dict[str, Persona]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """SmolLM2, torch.compile and prefix caching on, 8 personas, made-up directions; in float32, which every CPU is quick
    at. It starts as a user's does."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    directions = log.with_name("directions.safetensors")
    directions.write_bytes(to_bytes(tiny_directions(**SMOLLM2)))
    running = start_server(
        demo_model, log, "--plugin", "palign", "--palign-personas", str(smol_personas[0]),
        "--palign-directions", str(directions), "--max-model-len", "1024", "--max-num-seqs", "16",
        "--dtype", "float32", *ONE_PROCESS, warm=False,
    )  # fmt: skip
    yield running
    stop_server(running)


@pytest.fixture(scope="package")
def tiny_server(
    tiny_model: Path,
    tiny_personas: tuple[Path, dict[str, Persona]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The tiny model, float32, eager, 24 personas and few sequences at a time, so that slots are reused.
    Structured output has no blanks to choose."""
    log = tmp_path_factory.mktemp("server") / "tiny.log"
    running = start_server(
        tiny_model, log, "--plugin", "palign", "--palign-personas", str(tiny_personas[0]),
        "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
        "--enable-auto-tool-choice", "--tool-call-parser", "phi4_mini_json", *TINY_SERVER,
    )  # fmt: skip
    yield running
    stop_server(running)
