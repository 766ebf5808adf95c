"""Pure ASGI: whom does this request body ask for? A body with its grant goes on to vLLM, or a 4xx comes back."""

from __future__ import annotations

import json

from vllm_palign.admission.front_end import FrontEnd
from vllm_palign.errors import PalignError, PersonaInvalid
from vllm_palign.selection import (
    HEADER,
    REQUEST_KEY,
    Selection,
    check_salt,
    header_value,
    parse_persona,
)
from vllm_palign.server.allowed import route_path
from vllm_palign.server.asgi import App, Message, Receive, Send, send_error
from vllm_palign.server.body import (
    JsonObject,
    agree,
    parse_metadata,
    parse_model,
    refuse_misspelt,
    refuse_repeated,
    refuse_reserved,
    served_models,
)
from vllm_palign.tenants import caller

STEERED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


# A body without any of these bytes cannot ask for a persona: no key or name of ours, no model suffix,
# no JSON escape that could spell one, and no NUL (UTF-16 and UTF-32, which json.loads reads too).
_TRACES = (b"ersona", b"palign", b"@", b"\\u", b"\0")


class PersonaMiddleware:
    """Looks at every POST with a body. On the steered paths a persona is resolved, and its grant goes into
    ``vllm_xargs``; anywhere else asking for one is an error, because nothing would apply it."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body, messages = await _read_body(receive)
        if not any(trace in body for trace in _TRACES):
            await self.app(scope, _replay(messages, receive), send)
            return
        try:
            rewritten = await _rewrite(body, scope)
        except PalignError as error:
            await send_error(send, error)
            return
        if rewritten is None:
            await self.app(scope, _replay(messages, receive), send)
            return
        body, header = rewritten
        message = {"type": "http.request", "body": body, "more_body": False}
        await self.app(
            _with_length(scope, len(body)),
            _replay([message], receive),
            _adding_header(send, header),
        )


async def _rewrite(body: bytes, scope: Message) -> tuple[bytes, str] | None:
    """The body with its grant and the reply header, or None if nobody is asked for. Raises PalignError."""
    try:
        fields = json.loads(body, object_pairs_hook=JsonObject)
    except RecursionError:
        raise PersonaInvalid("the request body is nested too deeply") from None
    except (ValueError, UnicodeError):
        return None  # not JSON: vLLM has its own answer for that
    if not isinstance(fields, JsonObject):
        return None
    state = scope["app"].state
    steered = route_path(scope) in STEERED_PATHS
    served = served_models(state) if steered else []
    refuse_repeated(fields)
    refuse_misspelt(fields)
    refuse_reserved(fields)
    check_salt(fields.get("cache_salt"))
    suffix = parse_model(fields.get("model"), served) if steered else None
    selection = agree(
        {
            "persona": parse_persona(fields.get("persona")),
            "metadata": parse_metadata(fields.get("metadata")),
            "model": suffix[1] if suffix else None,
        }
    )
    if selection is None:
        return None
    if not steered:
        raise PersonaInvalid(
            f"persona: {route_path(scope)} is not steered; use {', '.join(STEERED_PATHS)}",
            param="persona",
        )
    if fields.get("use_beam_search"):
        raise PersonaInvalid(
            "persona: beam search is not steered, because vLLM gives its beams parameters of their own; "
            "leave use_beam_search out",
            param="use_beam_search",
        )
    scope["palign_asked"] = [name for name, _ in selection.parts]
    return await _grant(fields, suffix[0] if suffix else None, selection, state.palign)


async def _grant(
    fields: JsonObject, model: str | None, selection: Selection, front_end: FrontEnd
) -> tuple[bytes, str]:
    xargs = fields.get("vllm_xargs")
    if xargs is not None and not isinstance(xargs, dict):
        raise PersonaInvalid("vllm_xargs: wanted an object", param="vllm_xargs")
    tenant = caller.current(tenants=front_end.tenants is not None)
    # Composed here already: what cannot be applied is refused before vLLM has begun.
    chosen, token = await front_end.grant(selection, tenant)
    fields.pop("persona", None)
    fields["vllm_xargs"] = {**(xargs or {}), REQUEST_KEY: token}
    if model is not None:
        fields["model"] = model
    return json.dumps(fields).encode(), header_value(selection, chosen.digests)


async def _read_body(receive: Receive) -> tuple[bytes, list[Message]]:
    """The whole body, and the messages it came in (the last may be a disconnect)."""
    messages, chunks = [], []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            break
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
    return b"".join(chunks), messages


def _replay(messages: list[Message], receive: Receive) -> Receive:
    pending = iter(messages)

    async def replay() -> Message:
        for message in pending:
            return message
        return await receive()

    return replay


def _with_length(scope: Message, length: int) -> Message:
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name.lower() not in (b"content-length", b"transfer-encoding")
    ]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def _adding_header(send: Send, value: str) -> Send:
    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] < 400:
            message["headers"] = [
                *message.get("headers", []),
                (HEADER.encode(), value.encode("ascii")),
            ]
        await send(message)

    return adding
