"""The one place that knows the request keys: what a client may send, and what it is checked for.

A client's wish becomes a ``Selection`` (names, weights, strength, scope); the store turns it into an ``Effect``
(``effect``), effective offsets that the worker reads.
"""

from __future__ import annotations

import json
import math
import re
import string
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_palign.effect import SALT_PREFIX, SCOPES
from vllm_palign.errors import PalignStartupError, PersonaConflict, PersonaInvalid
from vllm_palign.persona import Persona, Scope, is_persona_id
from vllm_palign.switch import enabled

REQUEST_KEY = "palign"
"""Reserved key of ``vllm_xargs`` / ``SamplingParams.extra_args``."""

MAX_MIX = 8
DIGEST_PREFIX = 12
HEADER = "x-palign-persona"

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_WANTED = (
    'an id ("alice"), {"id": ..., "strength": ..., "scope": ...} or '
    '{"mix": {id: weight, ...}, "strength": ..., "scope": ...}'
)
_KEYS = {"id", "mix", "strength", "scope"}


PLACES = frozenset(
    (
        "metadata",
        "extrabody",
        "extrajson",
        "extraquery",
        "extraheaders",
        "vllmxargs",
        "extraargs",
        "samplingparams",
        "session",
    )
)
"""Objects in which clients are known to write further fields, folded."""

_ASKING = re.compile(
    rf"x?(?:{'|'.join(sorted(PLACES))})*(?:palign(?:personas?)?|personas?)"
    r"(?:ids?|names?|strengths?|scopes?|mix|weights?|alphas?|scales?|digests?)?"
)
MARKS = string.punctuation
"""What makes no other name of a name."""
_FOLDED = str.maketrans("", "", MARKS)


def fold(name: str) -> str:
    """``personaId``, ``persona_id``, ``persona[id]`` and ``PERSONA-ID`` are one name."""
    return name.lower().translate(_FOLDED).strip()


MOST_STEPS = 16


def steps(field: str) -> list[str]:
    """The names on the way to a form's or a query's field, at least one: ``metadata[persona]``, ``metadata.persona``,
    ``metadata[0][persona]``. After ``MOST_STEPS`` what is left is one name."""
    first, *others = re.split(r"[\[\].]+", field.lstrip("[]."), maxsplit=MOST_STEPS)
    return [first, *(name for name in others if name and not name.isdecimal())]


def asks(folded: str) -> bool:
    """Whether a reader would take a name for asking for a persona; vLLM ignores what it does not know, with a 200."""
    return _ASKING.fullmatch(folded) is not None


@dataclass(frozen=True)
class Selection:
    """Whom a request asks for: ``parts`` are (persona id, weight), sorted by id; a single persona
    has weight 1. The effect is ``strength * sum_i(weight_i * alpha_i * offsets_i)``, on the tokens of
    ``scope``; None leaves that to the server."""

    parts: tuple[tuple[str, float], ...]
    strength: float = 1.0
    scope: Scope | None = None

    @property
    def magnitude(self) -> float:
        """What ``--palign-max-strength`` bounds: the larger of |strength| and sum |strength x weight|."""
        # Weights first, and exactly: three times five fifths is 3, not a little more.
        weights = _sum(weight for _, weight in self.parts)
        return abs(self.strength) * max(1.0, weights) if self.strength else 0.0

    def with_default(self, scope: Scope) -> Selection:
        """The same with ``scope`` where the request names none."""
        return self if self.scope is not None else replace(self, scope=scope)


def parse_persona(value: object, *, param: str = "persona") -> Selection | None:
    """The body field ``persona``. ``None`` asks for nobody, and a key that is ``None`` is not there.

    Raises PersonaInvalid for anything that is not exactly one of the three forms.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return Selection(((parse_id(value, param), 1.0),))
    if not isinstance(value, Mapping):
        raise PersonaInvalid(f"{param}: got {_show(value)}, wanted {_WANTED}", param=param)
    value = {name: item for name, item in value.items() if item is not None}
    unknown = sorted(set(map(str, value)) - _KEYS)
    if unknown:
        raise PersonaInvalid(
            f"{param}: unknown keys {_show(unknown)}, wanted {_WANTED}", param=param
        )
    if ("id" in value) == ("mix" in value):
        raise PersonaInvalid(
            f"{param}: needs exactly one of 'id' and 'mix', wanted {_WANTED}", param=param
        )
    strength = parse_number(value.get("strength", 1.0), f"{param}.strength")
    scope = parse_scope(value.get("scope"), f"{param}.scope")
    if "id" in value:
        return Selection(((parse_id(value["id"], f"{param}.id"), 1.0),), strength, scope)
    mix = value["mix"]
    if isinstance(mix, Mapping):
        mix = {name: weight for name, weight in mix.items() if weight is not None}
    if not isinstance(mix, Mapping) or not 1 <= len(mix) <= MAX_MIX:
        count = f" with {len(mix)} entries" if isinstance(mix, Mapping) else ""
        raise PersonaInvalid(
            f"{param}.mix: got {_show(mix)}{count}, wanted an object of 1 to {MAX_MIX} ids with weights",
            param=f"{param}.mix",
        )
    parts = tuple(
        sorted(
            (parse_id(name, f"{param}.mix"), parse_number(weight, f"{param}.mix.{name}"))
            for name, weight in mix.items()
        )
    )
    return Selection(parts, strength, scope)


def check_strength(selection: Selection, most: float) -> None:
    """Raises PersonaInvalid when ``selection`` is stronger than the server allows; never clamps."""
    if selection.magnitude > most:
        raise PersonaInvalid(
            f"strength: {describe(selection)} amounts to {selection.magnitude:g}, this server allows "
            f"at most {most:g} (--palign-max-strength; for a blend the sum of |strength x weight| counts)",
            param="persona.strength",
        )


def check_own_strength(selection: Selection, personas: Mapping[str, Persona]) -> None:
    """Raises PersonaInvalid when ``selection`` asks for more of one of ``personas``, by name, than its file allows;
    never clamps. Content that a blend holds under several names counts once, with all of their weights."""
    weights: dict[str, list[float]] = {}
    for name, weight in selection.parts:
        persona = personas[name]
        own = weights.setdefault(persona.digest, [])
        own.append(weight)
        got, most = abs(selection.strength) * _sum(own), persona.max_strength
        if most is not None and got > most:
            raise PersonaInvalid(
                f"strength: {describe(selection)} amounts to {got:g} for persona {name!r}, whose file allows at "
                f"most {most:g} (its fit.max_strength; for a blend |strength x weight| of each part counts)",
                param="persona.strength",
            )


def _sum(weights: Iterable[float]) -> float:
    """Of their absolute values; infinite where no float holds it."""
    try:
        return math.fsum(map(abs, weights))
    except OverflowError:
        return math.inf


def persona_args(
    persona: str | Mapping[str, Any], strength: float | None = None, scope: str | None = None
) -> dict[str, Any]:
    """``SamplingParams(extra_args=persona_args("alice", strength=1.5))`` for the offline ``LLM`` class.

    Takes what the body field ``persona`` takes; ``scope`` is "answers" or "all", the engine's default without
    one. Raises PersonaInvalid for anything else, and
    PalignStartupError when vLLM is in use without the plugin, because the request would then be
    answered plainly.
    """
    if sys.modules.get("vllm") is not None and not enabled():
        raise PalignStartupError(
            "the palign plugin is not enabled in this process, so the persona would be ignored; "
            'set os.environ["VLLM_PLUGINS"] = "palign" before creating the LLM'
        )
    for name, value in (("strength", strength), ("scope", scope)):
        if value is None:
            continue
        if isinstance(persona, Mapping) and persona.get(name) is not None:
            raise PersonaConflict(f"{name} is given twice: in the object and as an argument")
        persona = {**(persona if isinstance(persona, Mapping) else {"id": persona}), name: value}
    selection = parse_persona(persona)
    if selection is None:
        return {}
    wish = {
        "mix": dict(selection.parts),
        "strength": selection.strength,
        "scope": selection.scope,
    }
    return {REQUEST_KEY: json.dumps(wish)}


def open_named(value: object) -> Selection:
    """The selection that ``persona_args`` packed. Raises PersonaInvalid for any other value."""
    selection = parse_persona(loads(value), param=f"extra_args[{REQUEST_KEY!r}]")
    if selection is None:
        raise PersonaInvalid(
            f"extra_args[{REQUEST_KEY!r}] is empty; make it with vllm_palign.persona_args"
        )
    return selection


def check_salt(client_salt: object) -> None:
    """Raises PersonaInvalid for a client salt that could name a persona's KV blocks."""
    if isinstance(client_salt, str) and client_salt.startswith(SALT_PREFIX):
        raise PersonaInvalid(
            f"cache_salt may not begin with {SALT_PREFIX!r}: that is how persona KV is kept apart",
            param="cache_salt",
        )


def reserved(param: str) -> PersonaInvalid:
    """The error for a client that writes the reserved key itself."""
    return PersonaInvalid(
        f'{param}: the key {REQUEST_KEY!r} is reserved; ask with the field "persona"', param=param
    )


def header_value(selection: Selection, digests: Mapping[str, str]) -> str:
    """``alice@0123456789ab;strength=1.5;scope=answers``; a blend lists its parts with their weights."""
    names = [f"{name}@{digests[name][:DIGEST_PREFIX]}" for name, _ in selection.parts]
    if selection.parts != ((selection.parts[0][0], 1.0),):
        names = [
            f"{text}*{weight!r}" for text, (_, weight) in zip(names, selection.parts, strict=True)
        ]
    return f"{'+'.join(names)};strength={selection.strength!r};scope={selection.scope}"


def loads(value: object) -> Any:
    """JSON text to its value; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def parse_id(value: object, param: str) -> str:
    if not is_persona_id(value):
        raise PersonaInvalid(
            f"{param}: got {_show(value)}, wanted a persona id: 1 to 128 of A-Z a-z 0-9 . _ -, "
            "beginning with a letter or digit",
            param=param,
        )
    assert isinstance(value, str)
    return value


def parse_number(value: object, param: str) -> float:
    number = math.nan
    if isinstance(value, str) and len(value) <= 64 and _NUMBER.fullmatch(value):
        number = float(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not math.isfinite(number):
        raise PersonaInvalid(f"{param}: got {_show(value)}, wanted a finite number", param=param)
    # -0.0 and 0.0 are one strength: they must not become two identities.
    return number + 0.0


def parse_scope(value: object, param: str) -> Scope | None:
    """Which tokens are steered; None for nothing said. Raises PersonaInvalid."""
    for scope in SCOPES:
        if value == scope:
            return scope
    if value is None:
        return None
    raise PersonaInvalid(
        f'{param}: got {_show(value)}, wanted "answers" (from the first answer on) or "all" (the prompt too)',
        param=param,
    )


def _show(value: object) -> str:
    """A value for an error message, short whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # int too long to print, nesting too deep
        text = type(value).__name__
    # Lone surrogates cannot be written to a log or a reply.
    text = text.encode("ascii", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


def describe(selection: Selection) -> str:
    names = " + ".join(f"{weight:g} x {name}" for name, weight in selection.parts)
    scope = f", scope {selection.scope}" if selection.scope else ""
    return f"{names} at strength {selection.strength:g}{scope}"
