"""What the registry says about a persona."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from vllm_palign.errors import PersonaInvalid
from vllm_palign.persona import Persona

MAX_TEXT = 500
"""Characters of a text that a record keeps; the whole of it is in the file."""


@dataclass(frozen=True)
class Record:
    """One registered persona. ``tenant`` owns it, ``name`` is its id in requests, ``digest`` the sha256
    of its bytes, ``created`` Unix seconds of when these bytes were registered, ``metadata`` small facts
    from the file's header (``alpha``, ``description``, ``method``, ``name``, ``steered_heads``)."""

    tenant: str
    name: str
    digest: str
    size: int
    num_layers: int
    num_heads: int
    head_dim: int
    base_model: str
    created: int
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Page:
    """One page of a listing, sorted by name. ``after`` of the next page is the last record's name."""

    records: tuple[Record, ...]
    has_more: bool


class Outcome(enum.Enum):
    """What a PUT did."""

    CREATED = "created"
    UNCHANGED = "unchanged"
    REPLACED = "replaced"


def metadata_of(persona: Persona) -> dict[str, Any]:
    """The part of a persona's header that listings show.

    Raises PersonaInvalid for a header that a database or a JSON reply cannot hold: lone surrogates, NUL
    in a text, hundreds of levels of nesting in ``fit``.
    """
    try:
        text = to_json(persona.header)
    except (PydanticSerializationError, RecursionError, ValueError) as error:
        raise PersonaInvalid(
            f"the header of persona {persona.name[:80]!a} cannot be written as JSON: {str(error)[:200]}"
        ) from None
    if b"\\u0000" in text:
        raise PersonaInvalid(f"the header of persona {persona.name[:80]!a} holds a NUL character")
    return {
        "alpha": persona.alpha,
        "description": persona.description[:MAX_TEXT],
        "method": persona.method[:MAX_TEXT],
        "name": persona.name[:MAX_TEXT],
        "steered_heads": len(persona.layers),
    }
