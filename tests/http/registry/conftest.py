"""Two API server processes and two data-parallel engines over an empty registry in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from local_postgres import Postgres

from tests.conftest import TINY_SERVER, Server, start_server, stop_server
from tests.databases import new_database
from tests.http.registry.calls import API_KEY, connect


@pytest.fixture(scope="package")
def service(
    tiny_model: Path, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The tiny model."""
    running = start_service(
        tiny_model,
        tmp_path_factory.mktemp("service") / "server.log",
        new_database(postgres),
        "--api-server-count", "2", "--data-parallel-size", "2",
    )  # fmt: skip
    yield running
    stop_server(running)


@pytest.fixture
def web(service: Server) -> Iterator[httpx.Client]:
    with connect(service) as client:
        yield client


def start_service(model: Path, log: Path, store: str, *options: str) -> Server:
    return start_server(
        model, log, "--plugin", "palign", "--palign-store", store, "--palign-store-timeout", "3",
        "--api-key", API_KEY, *TINY_SERVER, *options,
        VLLM_HTTP_TIMEOUT_KEEP_ALIVE="600",  # calls.connect wants to stay with one process
    )  # fmt: skip
