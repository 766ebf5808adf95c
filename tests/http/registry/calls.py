"""Calls to a running server, and what its answers are checked against."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np

from tests.conftest import TINY, Server
from tests.oracle import logprobs
from tests.personas import random_persona
from vllm_palign import Persona

API_KEY = "a-key-of-vllm"
HEADERS = {"authorization": f"Bearer {API_KEY}"}
PROMPT = [11, 222, 3333, 44]


def persona(seed: int) -> Persona:
    return random_persona(seed, **TINY, steered=6, scale=0.5)


def connect(server: Server) -> httpx.Client:
    """A client with one connection, and so with one of the API server processes, however long it idles."""
    limits = httpx.Limits(max_connections=1, keepalive_expiry=None)
    return httpx.Client(base_url=server.url, headers=HEADERS, timeout=60, limits=limits)


def put(web: httpx.Client, name: str, seed: int, **params: Any) -> httpx.Response:
    return web.put(f"/v1/personas/{name}", content=persona(seed).to_bytes(), params=params)


def ask(web: httpx.Client, name: Any, **fields: Any) -> httpx.Response:
    body = {"model": "base", "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "logprobs": 0,
            "return_token_ids": True, "persona": name, **fields}  # fmt: skip
    return web.post("/v1/completions", json=body)


def check(reply: httpx.Response, seed: int | None, reference: Any) -> dict[str, float]:
    """The answer is that of the persona ``seed``, or of nobody, and of no other.

    Returns the largest |log-probability difference| and, under ``effect``, what a plain answer would be off by.
    """
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    said = np.array(choice["logprobs"]["token_logprobs"])

    def off(parts: list[tuple[Persona, float]]) -> float:
        start = len(PROMPT) - 1
        wanted = logprobs(reference, [*PROMPT, *choice["token_ids"]], parts, start)[start:]
        return float(np.abs(said - wanted).max())

    if seed is None:
        plain = off([])
        assert plain < 1e-4
        return {"plain": plain}
    steered = off([(persona(seed), 1.0)])
    assert steered < 1e-4
    return {"steered": steered, "effect": off([])}


def error_of(reply: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return dict(error)


def store_of(server: Server) -> str:
    return server.options[server.options.index("--palign-store") + 1]
