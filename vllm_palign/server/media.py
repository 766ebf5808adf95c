"""Names that a client gives its images, sounds and videos (``uuid`` in a content part).

vLLM keeps media under that name, for everybody: a tenant that knows or guesses another's would be answered about
the other's image. Without a name they are kept under a hash of their content, which only who has it can say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from vllm_palign.errors import PersonaForbidden

# A key of that name, its letters escaped or not. Inside a JSON string it cannot match: there a quote follows a
# backslash. What matches is read; nothing else has to be.
_NAMED = re.compile(rb'[{,\s]"(?:u|\\u0075){2}(?:i|\\u0069)(?:d|\\u0064)"', re.IGNORECASE)
_MOST_BLANKS = 4096
_BEFORE_COLON = re.compile(rb"[ \t\r\n]{,%d}+(:?)" % _MOST_BLANKS)
_TRACES = (b'uuid"', b"\\u00")
_WINDOW = 1 << 16
"""Bytes that are searched without letting other threads go on."""


def may_name_media(body: bytes) -> bool:
    """Whether ``refuse_named_media`` has to look; so for hardly any body."""
    if b"\0" in body[:4]:
        return True
    for at in range(0, len(body), _WINDOW):
        # A key that a window cuts in two is in the overlap.
        window = body[at : at + _WINDOW + 64]
        lower = window.lower()
        if any(trace in lower for trace in _TRACES) and any(
            _is_key(body, at + name.end()) for name in _NAMED.finditer(window)
        ):
            return True
    return False


def _is_key(body: bytes, end: int) -> bool:
    """Whether the text that ends there is followed by a colon, or by more blanks than anybody writes."""
    after = _BEFORE_COLON.match(body, end)
    assert after is not None
    return bool(after[1]) or after.end() - end == _MOST_BLANKS


def refuse_named_media(body: bytes) -> None:
    """Raises PersonaForbidden if a content part of ``messages`` or ``input`` has a ``uuid``."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return  # vLLM has its own answer for that
    if isinstance(fields, dict) and any(
        "uuid" in part and part["uuid"] is not None
        for place in ("messages", "input")
        for message in _objects(fields.get(place), deep=False)
        for part in _objects(message.get("content"), deep=True)
    ):
        raise PersonaForbidden(
            "uuid: this server has tenants, and media named by a client would be everybody's; leave it out, "
            "and the media is known by its content",
            param="messages",
        )


def _objects(value: Any, *, deep: bool) -> Iterator[dict[str, Any]]:
    """The objects in ``value``, and in one another if ``deep``; bounded by the nesting that json.loads takes."""
    waiting = [value]
    while waiting:
        held = waiting.pop()
        if isinstance(held, dict):
            yield held
            if deep:
                waiting += held.values()
        elif isinstance(held, list):
            waiting += held
