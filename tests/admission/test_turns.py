"""Where there are few threads, one caller's many calls hold no other caller up."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.server.calls import open_front_end
from vllm_palign.admission.front_end import MANAGERS
from vllm_palign.admission.turns import Turns
from vllm_palign.errors import RegistryUnavailable
from vllm_palign.tenants.tenant import Tenant


def test_a_flood_of_one_tenant_lets_another_in_after_as_many_calls_as_there_are_threads() -> None:
    front_end = open_front_end()
    order: list[str] = []

    def work(name: str) -> None:
        time.sleep(0.01)
        order.append(name)

    async def run() -> None:
        flood = [
            asyncio.create_task(front_end.manage(lambda: work("flood"), Tenant("acme")))
            for _ in range(100)
        ]
        await asyncio.sleep(0.015)
        await front_end.manage(lambda: work("other"), Tenant("globex"))
        await asyncio.gather(*flood)

    asyncio.run(run())
    # What runs when it comes, and what has a thread's next turn.
    assert order.index("other") <= 3 * MANAGERS
    assert len(order) == 101


def test_nothing_is_kept_of_callers_who_are_gone() -> None:
    turns = Turns(1)

    async def run() -> None:
        async def one(who: str) -> None:
            async with turns.of(who):
                await asyncio.sleep(0)

        waiting = [asyncio.create_task(one(f"t{number % 3}")) for number in range(9)]
        await asyncio.sleep(0)
        assert len(turns) == 3
        waiting[-1].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())
    assert not len(turns)


def test_who_waits_too_long_for_a_turn_is_told_to_try_again() -> None:
    front_end = open_front_end()
    front_end.resolver.registry.timeout = 0.02

    async def run() -> None:
        slow = [
            asyncio.create_task(front_end.manage(lambda: time.sleep(0.3), Tenant()))
            for _ in range(8)
        ]
        outcomes = await asyncio.gather(*slow, return_exceptions=True)
        assert all(isinstance(outcome, RegistryUnavailable) for outcome in outcomes)

    asyncio.run(run())


def test_what_a_call_raises_ends_its_turn() -> None:
    front_end = open_front_end()

    def fail() -> None:
        raise KeyError("x")

    async def run() -> None:
        for _ in range(3 * MANAGERS):
            with pytest.raises(KeyError):
                await front_end.manage(fail, Tenant())

    asyncio.run(run())
