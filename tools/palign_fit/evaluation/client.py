"""The OpenAI client as this tool uses it: bounded concurrency, errors in our own words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from palign_fit.errors import FitError, InputError
from vllm_palign.errors import PalignError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

IN_FLIGHT = 16
TIMEOUT = 600.0
_MAX_SHOWN = 500

Result = TypeVar("Result")


def base_url(url: str) -> str:
    """``url`` ending in the API version, without a password. Raises InputError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url[:100]!r} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise InputError(
            f"{(parts.hostname or url)[:100]!r}: wanted a URL such as http://127.0.0.1:8000, without "
            "user and password; give a key by its own option or environment variable"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    address = f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}"
    return address if path.endswith("/v1") else f"{address}/v1"


def open_client(url: str, api_key: str | None, *, timeout: float = TIMEOUT) -> AsyncOpenAI:
    """A client of the server at ``url``; it lives in one event loop. Raises InputError."""
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise InputError(f"the API key for {base_url(url)} is no text that a header can hold")
    try:
        from openai import AsyncOpenAI
    except ImportError as error:
        raise InputError(
            "the openai package is missing; pip install 'vllm-palign[eval]'"
        ) from error
    # A key of None would make the client read whatever is in the environment, for any server.
    return AsyncOpenAI(
        base_url=base_url(url), api_key=api_key or "none", max_retries=2, timeout=timeout
    )


def run_all(
    calls: Sequence[Callable[[AsyncOpenAI], Awaitable[Result]]],
    client: Callable[[], AsyncOpenAI],
    in_flight: int,
) -> list[Result]:
    """The results of ``calls`` in their order, at most ``in_flight`` at once.

    The first failure ends all. Raises InputError where the server refused (4xx), FitError where it
    failed or cannot be reached.
    """
    import openai

    async def run() -> list[Result]:
        gate = asyncio.Semaphore(in_flight)
        async with client() as opened, asyncio.TaskGroup() as group:

            async def within_bounds(call: Callable[[AsyncOpenAI], Awaitable[Result]]) -> Result:
                async with gate:
                    return await call(opened)

            tasks = [group.create_task(within_bounds(call)) for call in calls]
        return [task.result() for task in tasks]

    try:
        return asyncio.run(run())
    except BaseExceptionGroup as group:
        error = group.exceptions[0]
        if isinstance(error, openai.APIStatusError):
            said = f"{error.request.url} answered {error.status_code}: {server_message(error)}"
            refused = 400 <= error.status_code < 500
            raise (InputError(said) if refused else FitError(said)) from error
        if isinstance(error, openai.APIConnectionError):
            raise FitError(
                f"{error.request.url}: cannot be reached, or took longer than {TIMEOUT:g} s "
                f"({error}); is the server running?"
            ) from error
        # Whatever a page of HTML or half a reply becomes in the client library.
        strange = (openai.APIError, ValueError, AttributeError, TypeError)
        if isinstance(error, strange) and not isinstance(error, (InputError, PalignError)):
            raise FitError(
                f"a reply is not what an OpenAI-compatible server answers ({str(error)[:_MAX_SHOWN]}); "
                "is the URL right?"
            ) from error
        raise error from None


async def first_model(client: AsyncOpenAI) -> str:
    """The base model: servers list it first. Raises InputError."""
    page = await client.models.list()
    if not page.data:
        raise InputError(f"{client.base_url}: serves no model")
    return page.data[0].id


def server_message(error: Any) -> str:
    """What a server said, short and printable."""
    body = error.body if isinstance(error.body, dict) else {}
    text = str(body.get("message") or error.message)[:_MAX_SHOWN]
    return "".join(character if character.isprintable() else " " for character in text)
