"""What a request's body says about personas: the one place that knows the names of its fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vllm_palign.errors import PersonaConflict, PersonaInvalid
from vllm_palign.selection import REQUEST_KEY, Selection, describe, parse_id, parse_number, reserved

# vLLM ignores fields it does not know, so these slips of the pen would be answered plainly.
_MISSPELT = frozenset(
    (
        "Persona",
        "personas",
        "persona_id",
        "persona_name",
        "persona_strength",
        "palign",
        "palign_persona",
    )
)


class JsonObject(dict[str, Any]):
    """A JSON object that remembers which keys it was given twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated: set[str] = set()
        if len(self) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.repeated = {key for key, count in counts.items() if count > 1}


def refuse_repeated(fields: JsonObject) -> None:
    """A key given twice means its last value to us and perhaps its first to a proxy before us; and the
    value that is dropped may be the one that asked for a persona."""
    repeated = sorted(fields.repeated & {"persona", "metadata", "model", "vllm_xargs"})
    persona = fields.get("persona")
    mix = persona.get("mix") if isinstance(persona, JsonObject) else None
    for place, value in (
        ("persona", persona),
        ("persona.mix", mix),
        ("metadata", fields.get("metadata")),
    ):
        if isinstance(value, JsonObject):
            repeated += [f"{place}.{name}" for name in value.repeated]
    if repeated:
        raise PersonaInvalid(f"{repeated[0]}: the key is there twice", param=repeated[0])


def refuse_misspelt(fields: JsonObject) -> None:
    for name in sorted(_MISSPELT & fields.keys()):
        raise PersonaInvalid(
            f'{name}: is no field of a request; ask with "persona": "alice" or '
            '"persona": {"id": "alice", "strength": 1.5}',
            param=name,
        )
    nested = fields.get("extra_body")
    if isinstance(nested, dict) and nested.keys() & {"persona", *_MISSPELT}:
        raise PersonaInvalid(
            "extra_body: is how the OpenAI Python client is given further fields; in the body itself "
            '"persona" stands beside "model"',
            param="extra_body",
        )


def refuse_reserved(fields: JsonObject) -> None:
    """The reserved key, wherever a client could write ``extra_args`` by hand."""
    for name in ("vllm_xargs", "extra_args", "sampling_params"):
        value = fields.get(name)
        nested = value.get("extra_args") if isinstance(value, dict) else None
        if any(isinstance(item, dict) and REQUEST_KEY in item for item in (value, nested)):
            raise reserved(name)


def served_models(state: Any) -> list[str]:
    models = state.openai_serving_models
    return [*(path.name for path in models.base_model_paths), *models.lora_requests]


def parse_metadata(metadata: object) -> Selection | None:
    """OpenAI ``metadata``: ``{"persona": "alice", "persona_strength": "1.5"}``; other keys are not ours."""
    if not isinstance(metadata, Mapping):
        return None  # vLLM's own validation answers for the field as such
    name, strength = metadata.get("persona"), metadata.get("persona_strength")
    if name is None:
        if strength is not None:
            raise PersonaInvalid(
                "metadata.persona_strength is set but metadata.persona is not; name the persona",
                param="metadata.persona_strength",
            )
        return None
    parts = ((parse_id(name, "metadata.persona"), 1.0),)
    return Selection(
        parts, 1.0 if strength is None else parse_number(strength, "metadata.persona_strength")
    )


def parse_model(model: object, served: Sequence[str]) -> tuple[str, Selection] | None:
    """``MODEL@persona``: the served model and whom the suffix asks for, or None if there is no suffix.

    A name that is itself served is taken as it is, ``@`` or not; a base that is not served is left to
    vLLM, which answers that there is no such model.
    """
    if not isinstance(model, str) or model in served:
        return None
    base, at, name = model.rpartition("@")
    if not at or base not in served:
        return None
    return base, Selection(((parse_id(name, "model"), 1.0),))


def agree(found: Mapping[str, Selection | None]) -> Selection | None:
    """The one selection of all places of a request that name a persona.

    Raises PersonaConflict when two of them differ.
    """
    asked = {place: selection for place, selection in found.items() if selection is not None}
    if not asked:
        return None
    (first_place, first), *others = asked.items()
    for place, other in others:
        if other != first:
            raise PersonaConflict(
                f"{first_place} asks for {describe(first)}, {place} for {describe(other)}; "
                "name the persona in one place or the same in both",
                param=place,
            )
    return first
