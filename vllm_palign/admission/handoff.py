"""From the middleware to admission, inside one process."""

from __future__ import annotations

import hmac
import json
import secrets
from contextvars import ContextVar
from dataclasses import dataclass

from vllm_palign.effect import Effect
from vllm_palign.errors import PalignStartupError
from vllm_palign.persona import Scope
from vllm_palign.selection import loads, reserved


@dataclass(frozen=True)
class Granted:
    """What a request was granted: offsets (None: nothing to add), the tokens they are added to, and whose KV
    blocks it may meet."""

    effect: Effect | None
    scope: Scope
    kv_scope: str


PLAIN = Granted(None, "all", "")

_CURRENT: ContextVar[Granted | None] = ContextVar("palign_granted", default=None)


def granted_here() -> Granted | None:
    """What the running ASGI call was granted, if anything."""
    return _CURRENT.get()


class Handoff:
    """The body carries a token, the context of the ASGI call carries the content.

    The token, which only this process knows, tells admission that the middleware has dealt with the
    request: clients can reach the reserved key on endpoints that the middleware does not rewrite.
    Offsets stay out of the body and live exactly as long as the request's tasks do.
    """

    def __init__(self) -> None:
        self._token = secrets.token_hex(16)

    def put(self, granted: Granted) -> str:
        """Grant ``granted`` to everything that runs in this context; returns the reserved key's value."""
        _CURRENT.set(granted)
        key = "" if granted.effect is None else granted.effect.key
        return json.dumps({"token": self._token, "key": key})

    def take(self, value: object) -> Granted | None:
        """What was granted, or None if ``value`` holds no token at all.

        Raises PersonaInvalid for a token that is not this process's, PalignStartupError when the content
        did not come along.
        """
        data = loads(value)
        if not isinstance(data, dict) or "token" not in data:
            return None
        if not hmac.compare_digest(str(data["token"]).encode(), self._token.encode()):
            raise reserved("vllm_xargs")
        granted = _CURRENT.get()
        key = "" if granted is None or granted.effect is None else granted.effect.key
        if granted is None or key != data["key"]:
            raise PalignStartupError(
                "a steered request reached admission without the offsets that were made for it"
            )
        return granted
