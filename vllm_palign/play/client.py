"""A palign server, as its public HTTP interface shows it to whoever holds a key."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from vllm_palign.persona import is_persona_id
from vllm_palign.play.words import no_answer, refusal

HEADER = "x-palign-persona"
PAGE = 1000
"""Personas asked for at once, the most that a server gives."""

_PATIENCE = httpx.Timeout(600, connect=5)
"""Seconds for an answer's next token: the first may wait for a long prompt, or for other people's."""
_QUICK = httpx.Timeout(15, connect=5)
"""For what a server knows by heart: tabs wait for one another's questions whether it is there."""
_FILE = "application/octet-stream"
_NOBODY = "-"
"""No persona id: whatever is put there is refused, and the refusal tells what the key may."""


class Trouble(Exception):
    """A server that refuses or does not answer. ``sentence`` is what a person is told; ``status`` is None and
    ``code`` empty where there was no reply."""

    def __init__(self, sentence: str, status: int | None = None, code: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Page:
    """Personas sorted by id, as the list shows them; ``more`` after the last."""

    personas: list[dict[str, Any]]
    more: bool


@dataclass(frozen=True)
class Piece:
    """What came of an answer: some ``text``, or the reply's ``header``, or at its end the count of ``tokens``."""

    text: str = ""
    header: str | None = None
    tokens: int | None = None


class Server:
    """Calls to the server at ``url``, with or without ``/v1`` at its end. ``key`` is used where a call brings
    none. Every call raises Trouble."""

    def __init__(self, url: str, key: str = "") -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._key = key
        self._http = httpx.AsyncClient(
            base_url=self.url, timeout=httpx.Timeout(60, connect=5), follow_redirects=False,
            # No proxy reaches this machine for us, nor has it any business with the key.
            trust_env=urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1"),
        )  # fmt: skip

    async def model(self, key: str) -> str:
        """The served model's name. The names that a persona makes of it stand behind it in the list."""
        models = (await self._json("GET", "/v1/models", key, timeout=_QUICK)).get("data")
        if not models:
            raise Trouble(f"{self.url} lists no model.")
        return str(models[0]["id"])

    async def personas(self, key: str, *, after: str = "", limit: int = PAGE) -> Page:
        query = {"limit": limit, **({"after": after} if after else {})}
        reply = await self._json("GET", "/v1/personas", key, params=query, timeout=_QUICK)
        personas = reply.get("data")
        if not isinstance(personas, list):
            raise Trouble(_strange(f"{self.url}/v1/personas"))
        return Page(personas, bool(reply.get("has_more")))

    async def persona(self, key: str, name: str) -> dict[str, Any]:
        return await self._json("GET", _path(name), key)

    async def file(self, key: str, name: str) -> bytes | None:
        """The persona's file, or None where the server does not hand it out to this key."""
        try:
            reply = await self._send("GET", _path(name), key, headers={"accept": _FILE})
        except Trouble as trouble:
            if trouble.status in (403, 406):
                return None
            raise
        return reply.content if reply.headers.get("content-type", "").startswith(_FILE) else None

    async def questionnaire(self, key: str) -> dict[str, Any]:
        return await self._json("GET", "/v1/questionnaire", key, timeout=_QUICK)

    async def may_make(self, key: str) -> None:
        """Raises the Trouble that making a persona from answers would end in, whoever it is. Nothing is made."""
        try:
            await self.make(key, _NOBODY, {"traits": {}})
        except Trouble as trouble:
            if trouble.status != 400:
                raise

    async def make(
        self, key: str, name: str, person: Mapping[str, Any], *, replace: bool = False
    ) -> dict[str, Any]:
        """A persona from ``{"answers": ...}`` or ``{"traits": ...}``, made and registered."""
        return await self._json("PUT", _path(name), key, params=_replacing(replace), json=person)

    async def put(
        self, key: str, name: str, data: bytes, *, replace: bool = False
    ) -> dict[str, Any]:
        """A persona from the bytes of its file."""
        return await self._json(
            "PUT", _path(name), key, params=_replacing(replace), content=data,
            headers={"content-type": _FILE},
        )  # fmt: skip

    async def delete(self, key: str, name: str) -> None:
        await self._send("DELETE", _path(name), key)

    async def chat(self, key: str, body: Mapping[str, Any]) -> AsyncIterator[Piece]:
        """Stream one answer; leaving the iteration ends the request."""
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        async with self._opened(key, body) as reply:
            yield Piece(header=reply.headers.get(HEADER))
            async for line in reply.aiter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                try:
                    event = json.loads(data)
                    error = event.get("error")
                    texts = [choice["delta"].get("content") for choice in event.get("choices", ())]
                    tokens = (event.get("usage") or {}).get("completion_tokens")
                except (ValueError, TypeError, KeyError, AttributeError):
                    raise Trouble(_strange(self.url)) from None
                if error is not None:
                    raise self._refused(error.get("code"), event, key)
                for text in texts:
                    if text:
                        yield Piece(text=text)
                if tokens is not None:
                    yield Piece(tokens=tokens)

    @asynccontextmanager
    async def _opened(self, key: str, body: Mapping[str, Any]) -> AsyncIterator[httpx.Response]:
        try:
            async with self._http.stream(
                "POST", "/v1/chat/completions", json=body, headers=self._who(key), timeout=_PATIENCE
            ) as reply:
                if reply.is_error:
                    await reply.aread()
                self._check(reply, key)
                yield reply
        except httpx.HTTPError as error:
            raise Trouble(
                no_answer(self.url, begun=isinstance(error, httpx.RemoteProtocolError))
            ) from error

    async def _json(self, method: str, path: str, key: str, **more: Any) -> dict[str, Any]:
        reply = await self._send(method, path, key, **more)
        try:
            found = reply.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Trouble(_strange(f"{self.url}{path}"))
        return found

    async def _send(self, method: str, path: str, key: str, **more: Any) -> httpx.Response:
        headers = {**self._who(key), **more.pop("headers", {})}
        try:
            reply = await self._http.request(method, path, headers=headers, **more)
        except httpx.HTTPError as error:
            raise Trouble(no_answer(self.url)) from error
        self._check(reply, key)
        return reply

    def _check(self, reply: httpx.Response, key: str) -> None:
        if reply.status_code // 100 == 2:
            return
        try:
            body = reply.json()
        except ValueError:
            body = {}
        raise self._refused(reply.status_code, body, key)

    def _refused(self, status: Any, body: Any, key: str) -> Trouble:
        error = body.get("error") if isinstance(body, dict) else None
        error = error if isinstance(error, dict) else {}
        status = status if isinstance(status, int) else 500
        code, message = str(error.get("code") or ""), str(error.get("message") or "")
        return Trouble(refusal(status, code, message, has_key=bool(key or self._key)), status, code)

    def _who(self, key: str) -> dict[str, str]:
        key = key.strip() or self._key
        # A key that is no header's text would be an error of the client library, which prints it.
        if not key.isascii() or not key.isprintable():
            raise Trouble(refusal(401, "invalid_api_key", "", has_key=True), 401, "invalid_api_key")
        return {"authorization": f"Bearer {key}"} if key else {}


def _path(name: str) -> str:
    # What is no name may lead to another path, as ".." does.
    if name != _NOBODY and not is_persona_id(name):
        raise Trouble(
            f"“{name[:40]}” cannot be a persona's name: letters (a to z), digits, or . _ -, beginning with a letter or digit."
        )
    return f"/v1/personas/{name}"


def _strange(url: str) -> str:
    return f"{url} is not what a palign server answers. Is the address right?"


def _replacing(replace: bool) -> dict[str, str]:
    return {"replace": "true"} if replace else {}
