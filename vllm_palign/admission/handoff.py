"""From the middleware to admission, inside one process."""

from __future__ import annotations

import hmac
import json
import secrets
from contextvars import ContextVar
from dataclasses import dataclass

from vllm_palign.effect import Effect
from vllm_palign.errors import PalignStartupError
from vllm_palign.selection import loads, reserved


@dataclass(frozen=True)
class Passage:
    """What a request was granted: offsets (None: nothing to add) and whose KV blocks it may meet."""

    effect: Effect | None
    kv_scope: str


_CURRENT: ContextVar[Passage | None] = ContextVar("palign_passage", default=None)


class Seal:
    """The body carries a token, the context of the ASGI call carries the content.

    The token, which only this process knows, tells admission that the middleware has dealt with the
    request: clients can reach the reserved key on endpoints that the middleware does not rewrite.
    Offsets stay out of the body and live exactly as long as the request's tasks do.
    """

    def __init__(self) -> None:
        self._token = secrets.token_hex(16)

    def close(self, passage: Passage) -> str:
        """Grant ``passage`` to everything that runs in this context; returns the reserved key's value."""
        _CURRENT.set(passage)
        key = "" if passage.effect is None else passage.effect.key
        return json.dumps({"seal": self._token, "key": key})

    def open(self, value: object) -> Passage | None:
        """What was granted, or None if ``value`` is not sealed at all.

        Raises PersonaInvalid for a seal that is not this process's, PalignStartupError when the content
        did not come along.
        """
        data = loads(value)
        if not isinstance(data, dict) or "seal" not in data:
            return None
        if not hmac.compare_digest(str(data["seal"]).encode(), self._token.encode()):
            raise reserved("vllm_xargs")
        passage = _CURRENT.get()
        key = "" if passage is None or passage.effect is None else passage.effect.key
        if passage is None or key != data["key"]:
            raise PalignStartupError(
                "a steered request reached admission without the offsets that were made for it"
            )
        return passage
