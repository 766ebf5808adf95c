"""Data parallel over two nodes: the second is headless, and its engine is asked like the first."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import TINY_SERVER, Server, start_server, start_warm, stop_server
from tests.warm import kill_group
from vllm_palign import Persona

VLLM = Path(sys.executable).with_name("vllm")


def two_nodes() -> list[str]:
    """Options that both nodes have in common."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        "--data-parallel-size", "2", "--data-parallel-size-local", "1",
        "--data-parallel-address", "127.0.0.1", "--data-parallel-rpc-port", str(port),
        *TINY_SERVER,
    ]  # fmt: skip


def served(personas: Path) -> list[str]:
    """Options of the node that answers."""
    return ["--api-server-count", "1", "--plugin", "palign", "--palign-personas", str(personas)]


@contextmanager
def headless_node(model: Path, log: Path, options: list[str], plugins: str) -> Iterator[None]:
    environment = {**os.environ, "VLLM_PLUGINS": plugins}
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
    command = [str(VLLM), "serve", str(model), "--headless", "--data-parallel-start-rank", "1"]
    node = start_warm([*command, *options], log, environment)
    try:
        yield
    finally:
        kill_group(node.pid)
        node.wait()


def ask(server: Server, rank: int, persona: str | None) -> str:
    """The answer of one engine."""
    reply = httpx.post(
        f"{server.url}/v1/completions",
        headers={"X-data-parallel-rank": str(rank)},
        json={"model": server.model, "prompt": [1, 2, 3], "max_tokens": 8, "temperature": 0, "persona": persona},
        timeout=120,
    )  # fmt: skip
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["text"])


@pytest.mark.shows(
    "refusals",
    "an engine that runs without the plugin",
    note="engine 1 of 2 does not steer: it cannot say what it is armed with ...",
)
def test_a_headless_node_without_the_plugin_stops_the_server(
    tiny_model: Path, tiny_personas: tuple[Path, dict[str, Persona]], tmp_path: Path
) -> None:
    options = two_nodes()
    personas = served(tiny_personas[0])
    with (
        headless_node(tiny_model, tmp_path / "node.log", options, plugins=""),
        pytest.raises(AssertionError, match="ended early"),
    ):
        stop_server(start_server(tiny_model, tmp_path / "log", *personas, *options))
    assert "engine 1 of 2 does not steer" in (tmp_path / "log").read_text()


def test_with_the_plugin_on_both_nodes_either_engine_steers(
    tiny_model: Path, tiny_personas: tuple[Path, dict[str, Persona]], tmp_path: Path
) -> None:
    options = two_nodes()
    personas = served(tiny_personas[0])
    with headless_node(tiny_model, tmp_path / "node.log", options, plugins="palign"):
        server = start_server(tiny_model, tmp_path / "log", *personas, *options)
        try:
            answers = {
                (rank, persona): ask(server, rank, persona)
                for rank in (0, 1)
                for persona in (None, "p0")
            }
        finally:
            stop_server(server)
    assert answers[0, None] == answers[1, None]
    assert answers[0, "p0"] == answers[1, "p0"]
    assert answers[0, "p0"] != answers[0, None]
