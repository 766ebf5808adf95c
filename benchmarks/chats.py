"""Conversations with one server over ``/v1/chat/completions``, turn by turn."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from servers import Server

Answer = tuple[float, str]
"""Seconds to the first token, and the text."""


@dataclass
class Turn:
    """One turn of all conversations."""

    ttfts: list[float]
    """Seconds to the first token, by user."""
    computed: float
    """Prompt tokens a user that were not in the cache."""


def converse(
    server: Server,
    asks: Sequence[Mapping[str, Any]],
    system: str,
    turns: int,
    tokens: int,
    number: int,
) -> list[Turn]:
    """One conversation behind ``system`` with each of ``asks`` (fields of a body: ``model``, ``persona``), all at
    once; every turn waits for the last one of all. ``number`` makes their questions new.

    Raises SystemExit for an error or an empty answer.
    """
    return asyncio.run(_converse(server, asks, system, turns, tokens, number))


async def _converse(
    server: Server,
    asks: Sequence[Mapping[str, Any]],
    system: str,
    turns: int,
    tokens: int,
    number: int,
) -> list[Turn]:
    chats: list[list[dict[str, str]]] = [[{"role": "system", "content": system}] for _ in asks]
    done = []
    async with httpx.AsyncClient(base_url=server.url, timeout=600) as client:
        for turn in range(turns):
            before = server.prompt_tokens()
            for user, chat in enumerate(chats):
                question = f"What happened on day {turn} of trip {number}-{user}? Tell me more."
                chat.append({"role": "user", "content": question})
            answers = await asyncio.gather(
                *(_ask(client, ask, chat, tokens) for ask, chat in zip(asks, chats, strict=True))
            )
            for chat, (_, text) in zip(chats, answers, strict=True):
                chat.append({"role": "assistant", "content": text})
            found, asked = (
                now - was for now, was in zip(server.prompt_tokens(), before, strict=True)
            )
            done.append(Turn([first for first, _ in answers], (asked - found) / len(asks)))
    return done


async def _ask(
    client: httpx.AsyncClient, ask: Mapping[str, Any], messages: list[dict[str, str]], tokens: int
) -> Answer:
    body: dict[str, Any] = {
        **ask, "messages": messages, "max_tokens": tokens, "temperature": 0, "stream": True,
    }  # fmt: skip
    began = time.perf_counter()
    first, text = 0.0, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            raise SystemExit(f"{dict(ask)}: {reply.status_code} {(await reply.aread()).decode()}")
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            piece = json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content")
            if piece and not text:
                first = time.perf_counter() - began
            text += piece or ""
    if not text:
        raise SystemExit(f"{dict(ask)}: an empty answer")
    return first, text
