"""A PostgreSQL server, empty registries, and a vLLM server over one of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import torch
from local_postgres import Postgres

from tests.conftest import Server, start_server, stop_server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    server.start()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.sqlite'}"
    return new_database(request.getfixturevalue("postgres"))


def new_database(postgres: Postgres) -> str:
    name = f"registry{next(_numbers)}"
    admin = sqlalchemy.create_engine(
        postgres.url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    admin.dispose()
    return postgres.url.removesuffix("postgres") + name


API_KEY = "a-key-of-vllm"


@pytest.fixture(scope="module")
def service(
    tiny_model: Path, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The tiny model behind two API server processes, over an empty registry in PostgreSQL."""
    running = start_service(
        tiny_model,
        tmp_path_factory.mktemp("service") / "server.log",
        new_database(postgres),
        "--api-server-count", "2", "--api-key", API_KEY,
    )  # fmt: skip
    yield running
    stop_server(running)


def start_service(model: Path, log: Path, store: str, *options: str) -> Server:
    return start_server(
        model, log, "--plugin", "palign", "--palign-store", store, "--palign-store-timeout", "2",
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4",
        "--enable-prompt-tokens-details", "--block-size", "32", *options,
    )  # fmt: skip


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> Any:
    """The tiny model in plain Hugging Face, for ``tests.oracle``."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
