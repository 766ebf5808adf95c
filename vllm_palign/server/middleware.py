"""Pure ASGI: whom does this request ask for? A body with its grant goes on to vLLM, or a 4xx comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from vllm_palign.errors import PalignError, PersonaInvalid
from vllm_palign.selection import HEADER, header_value
from vllm_palign.server import body as bodies
from vllm_palign.server import forms, served
from vllm_palign.server.allowed import leads_nowhere, route_path
from vllm_palign.server.asgi import App, Message, Receive, Send, header_of, send_error
from vllm_palign.server.body import Mention, Wish
from vllm_palign.server.json_text import utf8
from vllm_palign.server.media import may_name_media, refuse_named_media
from vllm_palign.tenants import caller

STEERED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
NAMING_PATHS = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
"""Only look at the model's name: a persona's suffix changes nothing there and is taken off."""

_SMALL = 1 << 16
"""Bytes that are read on the event loop: a millisecond or two."""
_READERS = 2
"""Threads for larger bodies."""

T = TypeVar("T")


class PersonaMiddleware:
    """Looks at every POST and every WebSocket. On the steered paths a persona is resolved, and its grant goes
    into ``vllm_xargs``; anywhere else asking for one is an error, because nothing would apply it."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._readers = ThreadPoolExecutor(_READERS, "palign-body")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._listen(scope, receive, send)
        elif scope["type"] != "http" or scope["method"] != "POST" or leads_nowhere(scope):
            await self.app(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        chunks, rest = await _read_body(receive)
        body = await self._beside_loop(sum(map(len, chunks)) <= _SMALL, lambda: b"".join(chunks))
        chunks.clear()
        try:
            if scope["app"].state.palign.tenants is not None:
                await self._beside_loop(len(body) <= _SMALL, lambda: _check_media(body))
            rewritten = await self._rewritten(body, scope)
        except PalignError as error:
            await send_error(send, error)
            return
        if rewritten is None:
            await self.app(scope, _replay([*_messages([body], rest)], receive), send)
            return
        pieces, header = rewritten
        if header is not None:
            send = _adding_header(send, header, expose=header_of(scope, b"origin") is not None)
        scope = _with_length(scope, sum(map(len, pieces)))
        await self.app(scope, _replay([*_messages(pieces, rest)], receive), send)

    async def _rewritten(
        self, body: bytes, scope: Message
    ) -> tuple[list[bytes], str | None] | None:
        """The body for vLLM, in pieces, and the reply's header, or None for the body as it is. Raises PalignError."""
        small = len(body) <= _SMALL
        query: bytes = scope.get("query_string", b"")
        content_type = header_of(scope, b"content-type") or b""
        if not (
            bodies.asks_by_header(scope["headers"])
            or bodies.may_ask(unquote_to_bytes(query))
            or forms.is_quoted(content_type)
            or await self._beside_loop(small, lambda: bodies.may_ask(body))
        ):
            return None
        path = route_path(scope)
        try:
            text, found = await self._beside_loop(small, lambda: _mentions(body, query, scope))
        except PalignError:
            raise
        except ValueError:
            return None  # not JSON: vLLM has its own answer for that
        wish = await _wish(found, scope)
        if wish is None:
            return None
        if wish.selection is None:
            return None
        if path in NAMING_PATHS and wish.places == ("model",) and wish.model is not None:
            model = wish.model
            renamed = await self._beside_loop(small, lambda: bodies.renamed(text, found, model))
            return renamed, None
        if path not in STEERED_PATHS:
            raise PersonaInvalid(
                f"{wish.places[0]}: {path} is not steered; use {', '.join(STEERED_PATHS)}",
                param=wish.places[0],
            )
        scope["palign_asked"] = wish.selection
        front_end = scope["app"].state.palign
        tenant = caller.current(tenants=front_end.tenants is not None)
        # Composed here already: what cannot be applied is refused before vLLM has begun.
        try:
            chosen, token = await front_end.grant(wish.selection, tenant)
        except PalignError as error:
            error.param = wish.field(error.param)
            raise
        granted = await self._beside_loop(
            small, lambda: bodies.granted(text, found, wish.model, token)
        )
        return granted, header_value(chosen.selection, chosen.digests)

    async def _beside_loop(self, small: bool, work: Callable[[], T]) -> T:
        """``work`` done, by a thread unless it is small."""
        if small:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def _listen(self, scope: Message, receive: Receive, send: Send) -> None:
        """Nothing that is said over a WebSocket is steered."""
        try:
            query = bodies.mentions_of_pairs("query", forms.query(scope.get("query_string", b"")))
            _refuse_any(await _wish([*query, *bodies.mentions_of_headers(scope["headers"])], scope))
        except PalignError as error:
            await send(_close(error))
            return
        refused = False

        async def heard() -> Message:
            nonlocal refused
            message = await receive()
            if message["type"] != "websocket.receive":
                return message
            try:
                await self._refuse_message(message, scope)
            except PalignError as error:
                refused = True
                event = {"type": "error", "error": error.message, "code": error.code}
                await send({"type": "websocket.send", "text": json.dumps(event)})
                await send(_close(error))
                return {"type": "websocket.disconnect", "code": 1008}
            return message

        async def unless_refused(message: Message) -> None:
            if not refused:
                await send(message)

        await self.app(scope, heard, unless_refused)

    async def _refuse_message(self, message: Message, scope: Message) -> None:
        text = message.get("text")
        content = text.encode("utf-8", "surrogatepass") if text else message.get("bytes") or b""
        small = len(content) <= _SMALL
        if not await self._beside_loop(small, lambda: bodies.may_ask(content)):
            return
        try:
            found = await self._beside_loop(small, lambda: bodies.mentions(content))
        except PalignError:
            raise
        except ValueError:
            return
        _refuse_any(await _wish(found, scope))


def _check_media(body: bytes) -> None:
    if may_name_media(body):
        refuse_named_media(body)


def _mentions(body: bytes, query: bytes, scope: Message) -> tuple[bytes, list[Mention]]:
    """The body as UTF-8 and everything that the request says. Raises ValueError for a body that is not JSON,
    unless the rest of the request says something too."""
    found = [
        *bodies.mentions_of_pairs("query", forms.query(query)),
        *bodies.mentions_of_headers(scope["headers"]),
    ]
    fields = forms.fields(body, header_of(scope, b"content-type") or b"")
    if fields is not None:
        return body, [*found, *bodies.mentions_of_pairs("form", fields)]
    try:
        body = utf8(body)
        return body, [*found, *bodies.mentions(body)]
    except PalignError:
        raise
    except ValueError:
        if not found:
            raise
        return body, found


async def _wish(found: Iterable[Mention], scope: Message) -> Wish | None:
    """None where a value at the top of the body is no JSON, and so neither is the body."""
    found = list(found)
    state = scope["app"].state
    known: list[str] = []
    for mention in found:
        if mention.name in ("model", "loraname"):
            known = await served.resolved(state, mention.short)
            if mention.name == "loraname":
                served.warn_if_hidden(str(mention.short), known)
    try:
        return bodies.wish(
            found, known, any_model=served.any_model(), scope=state.palign.resolver.scope
        )
    except PalignError:
        raise
    except ValueError:
        return None


def _refuse_any(wish: Wish | None) -> None:
    if wish is not None and wish.selection is not None:
        raise PersonaInvalid(
            f"{wish.places[0]}: a WebSocket is not steered; use {', '.join(STEERED_PATHS)}",
            param=wish.places[0],
        )


def _close(error: PalignError) -> Message:
    # A close frame has 123 bytes for it.
    reason = error.message.encode("ascii", "replace")[:120].decode()
    return {"type": "websocket.close", "code": 1008, "reason": reason}


async def _read_body(receive: Receive) -> tuple[list[bytes], Message | None]:
    """The whole body in the pieces it came in, and the disconnect that came in its place if it broke off."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return chunks, message
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return chunks, None


def _messages(pieces: list[bytes], rest: Message | None) -> Iterable[Message]:
    """A body's ``pieces`` as the messages of ASGI, and then ``rest``."""
    last = len(pieces) - 1
    for number, piece in enumerate(pieces):
        more = rest is not None or number < last
        yield {"type": "http.request", "body": piece, "more_body": more}
    if rest is not None:
        yield rest


def _replay(messages: list[Message], receive: Receive) -> Receive:
    async def replay() -> Message:
        # Popped: what has been read is nobody's any more.
        return messages.pop(0) if messages else await receive()

    return replay


def _with_length(scope: Message, length: int) -> Message:
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name.lower() not in (b"content-length", b"transfer-encoding")
    ]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def _adding_header(send: Send, value: str, *, expose: bool) -> Send:
    """With ``expose`` a browser shows the header to its page; vLLM's CORS middleware, which decides whether it may
    see the reply at all, names no header of ours."""
    added = [(HEADER.encode(), value.encode("ascii"))]
    if expose:
        added.append((b"access-control-expose-headers", HEADER.encode()))

    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            message["headers"] = [*message.get("headers", []), *added]
        await send(message)

    return adding
