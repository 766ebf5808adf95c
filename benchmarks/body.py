"""What a large body costs the API server before vLLM sees it: memory, and how long its event loop stands still.

    python benchmarks/body.py [--most 64]

Bodies of 1 to 64 MiB of seven kinds, each asking for a persona with its last field, go through gate and
middleware before an application that reads them and does nothing. Beside each stands ``json.loads`` of
the same bytes, which is what vLLM does with it, on its event loop. Each figure comes from a fresh process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import time
from collections.abc import Callable

from fastapi import FastAPI, Request, Response

from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.admission.resolver import Resolver
from vllm_palign.config.store_url import private_store
from vllm_palign.persona import Persona
from vllm_palign.registry import Registry
from vllm_palign.server.gate import Gate
from vllm_palign.server.middleware import PersonaMiddleware
from vllm_palign.shape import ModelShape
from vllm_palign.tenants.tenant import Tenant

MIB = 1 << 20
_CHUNK = 1 << 16
"""Bytes of a message of uvicorn."""
_TICK = 0.001


def _repeated(piece: bytes) -> Callable[[int], bytes]:
    return lambda size: piece * (size // len(piece))


KINDS: dict[str, Callable[[int], bytes]] = {
    "one text (an image)": lambda size: b'"' + b"x" * (size - 3) + b'",',
    "texts with escapes": _repeated(b'"\\u00e4 \\"quoted\\" words @",'),
    "token ids": _repeated(b"12345,"),
    "small objects": _repeated(b'{"a":1},'),
    "empty lists": _repeated(b"[],"),
    "nested": _repeated(b'{"a":[{"b":[{"c":["d"]}]}]},'),
    "messages": _repeated(b'{"role": "user", "content": "Hello, how do you feel today?"},'),
}


def body(kind: str, size: int) -> bytes:
    return b'{"model":"base","prompt":[' + KINDS[kind](size - 64) + b'0],"persona":"alice"}'


def application() -> FastAPI:
    import numpy as np

    registry = Registry(private_store())
    registry.migrate()
    persona = Persona(
        name="alice", description="", base_model="base", method="pas", alpha=1.0, num_layers=1, num_heads=1,
        head_dim=8, layers=np.zeros(1, np.int32), heads=np.zeros(1, np.int32),
        offsets=np.ones((1, 8), np.float32), fit={},
    )  # fmt: skip
    registry.put(Tenant(), "alice", persona, persona.to_bytes())
    shape = ModelShape(
        num_layers=1, num_heads=1, head_dim=8, attention_layers=frozenset((0,)), largest=3e38
    )
    app = FastAPI()
    resolver = Resolver(registry, shape, max_strength=3.0, cache_bytes=MIB)
    app.state.palign = FrontEnd(resolver, "base", over_http=True)
    models = type("Models", (), {"base_model_paths": [], "lora_requests": {"base": None}})
    app.state.openai_serving_models = models

    @app.post("/v1/completions")
    async def read(request: Request) -> Response:
        async for _ in request.stream():  # request.body() would copy it all, which is vLLM's to do
            pass
        return Response()

    app.add_middleware(PersonaMiddleware)
    app.add_middleware(Gate)
    return app


async def through(app: FastAPI, content: bytes) -> float:
    """The longest time, in seconds, that the loop stood still while ``content`` was answered."""
    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"", "scheme": "http",
        "root_path": "", "http_version": "1.1", "query_string": b"", "headers": [], "app": app,
    }  # fmt: skip
    pieces = iter(range(0, len(content), _CHUNK))
    statuses: list[int] = []

    async def receive() -> dict[str, object]:
        await asyncio.sleep(0)
        at = next(pieces)
        piece = content[at : at + _CHUNK]
        return {"type": "http.request", "body": piece, "more_body": at + _CHUNK < len(content)}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            assert "x-palign-persona" in {name.decode() for name, _ in message["headers"]}  # type: ignore[attr-defined]
            statuses.append(message["status"])  # type: ignore[arg-type]

    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_TICK)
            longest = max(longest, time.perf_counter() - before - _TICK)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.02)
    await app(scope, receive, send)  # type: ignore[arg-type]
    ticking.cancel()
    assert statuses == [200]
    return longest


def peak() -> int:
    """Bytes: the most this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(kind: str, mib: int, how: str) -> dict[str, float]:
    """``how``: "palign" or "stock". Bytes above what the process had, seconds, and seconds of standstill."""
    app = application()
    asyncio.run(
        through(app, body(kind, _CHUNK * 2))
    )  # all that is imported and opened on first use
    content = body(kind, mib * MIB)
    # Memory that the kernel has once given is not given again: the peak begins here.
    before = peak()
    began = time.perf_counter()
    standstill = 0.0
    if how == "palign":
        standstill = asyncio.run(through(app, content))
    else:
        json.loads(content)
    seconds = time.perf_counter() - began
    return {"bytes": peak() - before, "seconds": seconds, "standstill": standstill or seconds}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--most", type=int, default=64, metavar="MIB", help="largest body")
    options = parser.parse_args()
    fork = multiprocessing.get_context("fork")
    print("| body | MiB | s | loop stands still, ms | memory, MiB | json.loads: s | memory, MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in KINDS:
        for mib in (1, 8, 64):
            if mib > options.most:
                continue
            with fork.Pool(1, maxtasksperchild=1) as processes:
                ours, stock = (
                    processes.apply(measure, (kind, mib, how)) for how in ("palign", "stock")
                )
            print(
                f"| {kind} | {mib} | {ours['seconds']:.3f} | {ours['standstill'] * 1000:.0f} | "
                f"{ours['bytes'] / MIB:.0f} | {stock['seconds']:.3f} | {stock['bytes'] / MIB:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
