"""Where a steered request's time goes outside the model: microseconds of Python on front end and worker.

    python benchmarks/host.py

In this process, one core, a registry in SQLite, personas of the demo model; medians. No engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from subjects import HEAD_DIM, HEADS, LAYERS, write_personas
from vllm.renderers.params import ChatParams

from vllm_palign import Persona, load
from vllm_palign.admission.conversations import first_answer, note_first_turn
from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.admission.resolver import Resolver
from vllm_palign.effect import Effect, block_identity
from vllm_palign.registry import Registry
from vllm_palign.selection import Selection
from vllm_palign.shape import ModelShape
from vllm_palign.tenants.tenant import Tenant
from vllm_palign.worker.bank import BankShape, OffsetBank

PERSONAS = 256
REPEATED = 500


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        names = write_personas(Path(folder) / "personas", PERSONAS)
        personas = [load(Path(folder) / "personas" / f"{name}.safetensors") for name in names]
        front_end(f"sqlite:///{folder}/registry.sqlite", personas)
    effects = [Effect.compose([(persona, 1.0)]) for persona in personas]
    prompts(effects[0])
    worker(effects)
    return 0


def front_end(url: str, personas: list[Persona]) -> None:
    registry = Registry(url)
    registry.migrate()
    tenant = Tenant()
    registry.add_missing(tenant, [(one.name, one, one.to_bytes()) for one in personas])
    shape = ModelShape(LAYERS, HEADS, HEAD_DIM, frozenset(range(LAYERS)), 3e38)
    store = Resolver(registry, shape, max_strength=3.0, cache_bytes=1 << 28)
    front = FrontEnd(store, "model", over_http=True)
    wishes = itertools.cycle([Selection(((one.name, 1.0),)) for one in personas])
    first = [timed(lambda: store.resolve(next(wishes), tenant)) for _ in personas]
    show("resolve a persona for the first time", first)
    show("resolve it again", repeat(lambda: store.resolve(next(wishes), tenant)))
    names = itertools.cycle([one.name for one in personas])
    show(
        "  of it: names to digests in SQLite",
        repeat(lambda: registry.lookup(tenant, [next(names)])),
    )
    one = store.resolve(next(wishes), tenant).effect
    assert one is not None
    show("pack offsets into the request", repeat(one.pack))

    async def grant() -> list[float]:
        took = []
        for _ in range(REPEATED):
            began = time.perf_counter()
            await front.grant(next(wishes), tenant)
            took.append(time.perf_counter() - began)
        return took

    show("resolve and hand over, off the event loop", asyncio.run(grant()))
    registry.close()


def prompts(effect: Effect) -> None:
    """What scope ``answers`` adds to a prompt, in a conversation of ten turns behind a system prompt."""
    params = ChatParams(chat_template="{{ messages }}" * 100)

    async def render(*_: Any) -> Any:
        return None, ({"prompt_token_ids": opening},)

    for tokens in (500, 2000):
        opening, whole = list(range(tokens + 30)), list(range(tokens + 900))
        messages = [{"role": "system", "content": "word " * tokens}]
        for _ in range(10):
            messages += [
                {"role": "user", "content": "word " * 30},
                {"role": "assistant", "content": "word " * 30},
            ]
        rendered: dict[str, Any] = {"prompt_token_ids": whole}
        request = SimpleNamespace(prompt_token_ids=whole)

        def begin(
            messages: Any = messages, rendered: Any = rendered, request: Any = request
        ) -> None:
            note = note_first_turn(render, render, messages, params, None, rendered)
            # Without an event loop: nothing in it waits.
            with contextlib.suppress(StopIteration):
                note.send(None)
            first_answer(request, rendered)

        show(f"where answers begin, {tokens} tokens, first turn known", repeat(begin))
    packed = effect.pack(start=2030)

    def keys() -> None:
        for end in range(16, 2048, 16):
            block_identity(packed, end)

    show("identity of the 127 blocks of 2,032 tokens", repeat(keys))


def worker(effects: list[Effect]) -> None:
    packed = itertools.cycle([effect.pack() for effect in effects])
    show("unpack and check offsets", repeat(lambda: Effect.unpack(next(packed))))
    for count in (16, PERSONAS, 1024):
        for indexed in (True, False):
            steps(effects, count, indexed=indexed)
    fills()


def steps(effects: list[Effect], count: int, *, indexed: bool) -> None:
    """Steps of ``count`` requests; ``indexed`` as by vLLM's V2 runner, which keeps a request's index."""
    shape = BankShape(tuple(range(LAYERS)), HEADS, 0, HEAD_DIM, count, 8 * count)
    bank = OffsetBank(shape, torch.bfloat16, torch.device("cpu"))
    ids = [f"request-{index}" for index in range(count)]
    starts = torch.arange(count + 1, dtype=torch.int32)
    seats = torch.arange(count) if indexed else None
    positions = torch.full((8 * count,), 100)
    of_request = itertools.cycle(effects)
    new = itertools.count()

    def come(seat: int) -> None:
        bank.admit(ids[seat], next(of_request))
        if indexed:
            bank.seat(ids[seat], seat)

    def change() -> None:
        """One request goes and another comes, as in a busy server's every step."""
        number = next(new)
        seat = number % count
        bank.forget(ids[seat])
        ids[seat] = f"another-{number}"
        come(seat)
        decode()

    for seat in range(count):
        come(seat)
    decode = partial(bank.step, ids, starts, count, positions, seats)
    runner = "V2" if indexed else "V1"
    show(
        f"{runner}: a prefill step of {count} requests",
        repeat(partial(bank.step, ids, 8 * starts, 8 * count, positions, seats)),
    )
    show(f"{runner}: a decode step of {count} requests", repeat(decode))
    show(f"{runner}: a decode step of {count}, one of them new", repeat(change))


def fills() -> None:
    """A request whose row is not on the device, in the shape of a 70B model."""
    layers, heads, head_dim, steered = 80, 64, 128, 24
    shape = BankShape(tuple(range(layers)), heads, 0, head_dim, 4, 64)
    bank = OffsetBank(shape, torch.bfloat16, torch.device("cpu"))
    rng = np.random.default_rng(0)
    places = np.stack([rng.integers(layers, size=steered), np.arange(steered)]).astype(np.int32)
    effects = itertools.cycle(
        Effect(
            f"{number}",
            (),
            places[0],
            places[1],
            rng.standard_normal((steered, head_dim), dtype=np.float32),
        )
        for number in range(16)
    )

    def fill() -> None:
        bank.admit("request", next(effects))
        bank.seat("request", 0)
        bank.forget("request")

    show(f"fill a row of {layers} layers x {heads} heads, {steered} steered", repeat(fill))


def repeat(work: Callable[[], Any]) -> list[float]:
    work()
    return [timed(work) for _ in range(REPEATED)]


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def show(what: str, seconds: list[float]) -> None:
    low, middle, high = 1e6 * np.quantile(seconds, (0.25, 0.5, 0.75))
    spread = f"  ({low:.1f} to {high:.1f})" if len(seconds) > 1 else ""
    print(f"{what:<50}{middle:9.1f} us{spread}")


if __name__ == "__main__":
    sys.exit(main())
