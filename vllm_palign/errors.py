"""Every error palign raises on purpose.

    PalignError                  (a ValueError)
    ├── PersonaInvalid           400 persona_invalid       a file or a request field that breaks the rules
    ├── PersonaConflict          400 persona_conflict      two places of one request name different personas
    ├── PersonaIncompatible      400 persona_incompatible  a sound persona that does not fit the served model
    ├── PersonaForbidden         403 persona_forbidden     the caller may not use or change this persona
    ├── PersonaNotFound          404 persona_not_found     no persona of that name
    ├── PersonaExists            409 persona_exists        the name is taken by other bytes
    ├── PersonaTooLarge          413 persona_invalid       an upload over the limit
    ├── PersonaCorrupt           500 persona_corrupt       registered bytes no longer match their digest
    ├── DirectionsMissing        501 directions_missing    a server that was given no directions
    ├── RegistryUnavailable      503 registry_unavailable  the registry does not answer; try again
    ├── RegistryFull             507 registry_full         the registry has no room for more
    ├── KeyInvalid               401 invalid_api_key       no API key, or one that no tenant has
    ├── BodyTooLarge             413 body_too_large        more than may be sent in one request
    ├── NotOffered               404 not_found             a path that tenants are not offered
    ├── MethodNotOffered         405 method_not_allowed    a method that tenants are not offered there
    └── PalignStartupError       -                         the server must not start; the message says why
        └── DirectionsInvalid    -                         a directions file that breaks the rules

Each request error carries the HTTP ``status`` and the OpenAI error ``code``. They are
``ValueError``s because vLLM answers a ValueError from request processing with a 400 instead of a 500.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar


class PalignError(ValueError):
    """Root of the tree. ``param`` names the request field at fault, where there is one."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "palign_error"
    type: ClassVar[str] = "invalid_request_error"
    headers: ClassVar[dict[str, str]] = {}
    """Sent with the error, beside those every reply has."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def to_openai(self) -> dict[str, Any]:
        """The OpenAI error object: ``{"error": {"message", "type", "param", "code"}}``."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class PersonaInvalid(PalignError):
    status = 400
    code = "persona_invalid"


class PersonaConflict(PalignError):
    status = 400
    code = "persona_conflict"


class PersonaIncompatible(PalignError):
    status = 400
    code = "persona_incompatible"


class PersonaForbidden(PalignError):
    status = 403
    code = "persona_forbidden"
    type = "permission_error"


class PersonaNotFound(PalignError):
    status = 404
    code = "persona_not_found"
    type = "not_found_error"


class PersonaExists(PalignError):
    status = 409
    code = "persona_exists"
    type = "conflict_error"


class PersonaTooLarge(PersonaInvalid):
    status = 413


class PersonaCorrupt(PalignError):
    code = "persona_corrupt"
    type = "server_error"


class DirectionsMissing(PalignError):
    status = 501
    code = "directions_missing"
    type = "server_error"


class RegistryUnavailable(PalignError):
    status = 503
    code = "registry_unavailable"
    type = "server_error"
    retry_after: ClassVar[int] = 2
    """Seconds."""
    headers: ClassVar[dict[str, str]] = {"retry-after": str(retry_after)}


class RegistryFull(PalignError):
    status = 507
    code = "registry_full"
    type = "server_error"


class KeyInvalid(PalignError):
    status = 401
    code = "invalid_api_key"
    type = "authentication_error"
    headers: ClassVar[dict[str, str]] = {"www-authenticate": "Bearer"}


class BodyTooLarge(PalignError):
    status = 413
    code = "body_too_large"


class NotOffered(PalignError):
    status = 404
    code = "not_found"
    type = "not_found_error"


class MethodNotOffered(NotOffered):
    status = 405
    code = "method_not_allowed"


class PalignStartupError(PalignError):
    code = "palign_startup"
    type = "server_error"


class DirectionsInvalid(PalignStartupError):
    """Read at start, or by ``palign-fit``: never a client's error."""


@functools.cache
def codes() -> frozenset[str]:
    """Every error code a client can get from palign."""
    found, classes = set(), [PalignError]
    while classes:
        cls = classes.pop()
        found.add(cls.code)
        classes += cls.__subclasses__()
    return frozenset(found)
