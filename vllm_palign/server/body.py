"""What a request says about personas: the one place that knows the names of its fields.

**The rule.** A name is read without its ASCII punctuation, blind to case. Where a request may speak of a persona, a name
that ``asks`` either stands in ``APPLIED`` exactly as written there, and is applied, or the request is refused. So
does ``model`` with a persona's suffix. A name of ``_LOOSE`` (strength, mix, scope) is refused where the
request names a persona somewhere, because it stands beside it. The places are the top of the body, the objects of ``PLACES`` in
it and in one another, also as lists and as JSON in texts, the query, form fields, request headers, and messages of a
WebSocket; no others. So a tool's
schema, a template's variables, a prompt, and a client's own keys of ``metadata`` may use such words. ``null`` is not
there, in every place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vllm_palign.errors import PersonaConflict, PersonaInvalid
from vllm_palign.persona import Scope
from vllm_palign.selection import (
    MARKS,
    PLACES,
    REQUEST_KEY,
    Selection,
    asks,
    check_salt,
    describe,
    fold,
    parse_id,
    parse_number,
    parse_persona,
    parse_scope,
    reserved,
    steps,
)
from vllm_palign.server.json_text import Member, first_member, members, without

APPLIED = (
    ("persona",),
    ("metadata", "persona"),
    ("metadata", "persona_strength"),
    ("metadata", "persona_scope"),
    ("model",),
)
"""What is applied, on a path that is steered."""

_LOOSE = frozenset(("strength", "mix", "scope"))
_LOOSE_AT_TOP = _LOOSE | {"alpha", "weight", "weights"}
"""Further down the latter are words of others: of a logits processor in vllm_xargs, of a client in metadata."""

_WRITTEN_BY_HAND = frozenset(("vllmxargs", "extraargs", "samplingparams"))
"""The places from which vLLM would take the reserved key."""

_TOP = frozenset(("model", "cachesalt", "usebeamsearch", "loraname"))
"""Further names that are looked at."""

_ONCE = frozenset(("metadata", "model", "vllmxargs"))
"""A key given twice means its last value to us and perhaps its first to a proxy before us; and the value that
is dropped may be the one that asked for a persona. So it is with every name that asks."""

_ADAPTER_HEADER = b"x-amzn-sagemaker-adapter-identifier"
"""The request header that ``/invocations`` takes its model from."""

_DEEPEST = 4
_MOST_MEMBERS = 4096
_LARGEST_VALUE = 1 << 16

# A request without any of these bytes, in any case and whatever marks stand between them, cannot ask for a persona: no
# name of ours, no JSON escape that could spell one, no NUL (UTF-16 and UTF-32, which json.loads reads too), no model
# suffix.
_NAMES = (b"ersona", b"palign")
_SPELT = (b"\\u", b"\0")
_BETWEEN = MARKS.encode()

_LONGEST_NAME = 64
"""Characters of a name in text that is not quite JSON."""
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_PAIR = re.compile(
    rf"([^\s'\"{{}}:=,]{{1,{_LONGEST_NAME}}}+)['\"]?\s{{,16}}+[:=]\s{{,16}}+(?:['\"]([^'\"]{{1,256}}+))?"
)
"""A name there, and its value if that is a text: ``{'persona': 'alice'}``, ``{persona: alice``."""
_WINDOW = 1 << 18


@dataclass(frozen=True)
class Mention:
    """A name that matters, where it stands, and the JSON text of its value."""

    path: tuple[str, ...]
    text: bytes
    member: Member | None = None
    """In the body's own text; only of those at its top."""

    @property
    def name(self) -> str:
        """Folded; ``x-`` before a name, as headers have it, makes no other of it."""
        return fold(self.path[-1].lower().removeprefix("x-"))

    @property
    def param(self) -> str:
        return ".".join(self.path)

    @property
    def value(self) -> Any:
        """Raises ValueError if it is not JSON, PersonaInvalid if it is too large or too deep to be meant."""
        if len(self.text) > _LARGEST_VALUE:
            raise PersonaInvalid(
                f"{self.param}: is {len(self.text)} bytes of JSON, wanted at most {_LARGEST_VALUE}",
                param=self.param,
            )
        try:
            text = self.text.decode("utf-8", "surrogatepass")
            return json.loads(text, object_pairs_hook=_object)
        except RecursionError:
            raise PersonaInvalid(f"{self.param}: is nested too deeply", param=self.param) from None

    @property
    def short(self) -> Any:
        """Its value, or None if it is too long to be a name, or no JSON: a text in a body may say it is an object."""
        try:
            return None if len(self.text) > _LARGEST_VALUE else self.value
        except PersonaInvalid:
            raise
        except ValueError:
            return None


@dataclass(frozen=True)
class Wish:
    """Whom a request asks for, and what the name of its model is without the suffix (None: as it is)."""

    selection: Selection | None = None
    model: str | None = None
    places: tuple[str, ...] = ()
    """Where it asks: of "persona", "metadata" and "model"."""

    def field(self, param: str | None) -> str | None:
        """What the body field ``param`` ("persona", "persona.strength") is called in the place that asks."""
        place = self.places[0]
        if param not in ("persona", "persona.strength") or place == "persona":
            return param
        return place if place == "model" else f"metadata.{param.replace('.', '_')}"


class _Repeating(dict[str, Any]):
    """A JSON object in which a key is there twice."""

    repeated = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A plain dict, unless a key is repeated."""
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    seen: set[str] = set()
    marked = _Repeating(values)
    marked.repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    return marked


def may_ask(text: bytes) -> bool:
    """Whether ``text`` holds what a request for a persona cannot do without."""
    return _speaks(text, b"@")


def _speaks(text: bytes, *traces: bytes) -> bool:
    """Whether one of ``traces`` is in ``text``, or what may be a name that asks."""
    for at in range(0, len(text), _WINDOW):
        # A trace that a window cuts in two is in the overlap.
        window = text[at : at + _WINDOW + 1024].lower()
        if any(trace in window for trace in (*_SPELT, *traces)):
            return True
        bare = window.translate(None, _BETWEEN)
        if any(name in bare for name in _NAMES):
            return True
    return False


def mentions(body: bytes) -> list[Mention]:
    """Every name that matters in the JSON object ``body`` (UTF-8).

    Raises ValueError if it is no such object, PersonaInvalid if a name is there twice.
    """
    return [*_object_mentions((), body, 0)]


def _object_mentions(path: tuple[str, ...], text: bytes, begin: int) -> Iterator[Mention]:
    seen: set[str] = set()
    for count, member in enumerate(members(text, begin)):
        if count == _MOST_MEMBERS:
            raise _too_many(path)
        kind = _kind(path, member.name, seen)
        if kind is None:
            continue
        here, value = (*path, member.name), text[member.value : member.end]
        at_top = None if path else member
        if kind == "name":
            if value != b"null":
                yield Mention(here, value, at_top)
            continue
        yield Mention(here, b"", at_top)
        if value[:1] == b"{":
            if len(path) < _DEEPEST:
                yield from _object_mentions(here, text, member.value)
            elif _speaks(value):
                raise _too_deep(here)
        elif value[:1] in (b"[", b'"') and may_ask(value):
            inside = (*path, f"{member.name} (text)") if value[:1] == b'"' else here
            yield from _nested_in_text(inside, value.decode("utf-8", "surrogatepass"))


def _kind(path: tuple[str, ...], name: str, seen: set[str]) -> Literal["place", "name"] | None:
    """What a member of that name is in the object at ``path``, whose names so far are ``seen``; None: not ours.
    Raises PersonaInvalid for one that may not be there twice."""
    folded = fold(name)
    asking = asks(folded)
    loose = _LOOSE if path else _LOOSE_AT_TOP
    if not (folded in PLACES or asking or folded in loose or folded in _TOP):
        return None
    if name in seen and (asking or folded in _ONCE):
        param = ".".join((*path, name))
        raise PersonaInvalid(f"{param}: the key is there twice", param=param)
    seen.add(name)
    return "place" if folded in PLACES else "name"


class _Members(list[tuple[str, Any]]):
    """A JSON object, as it is written."""


def _nested_in_text(path: tuple[str, ...], text: str) -> Iterator[Mention]:
    """Of a place that holds an object as text, or a list of such, or of texts, and of lists and texts in those. vLLM
    ignores it in most places, so that nothing of it is applied: its names stand below no place of ``APPLIED``.

    Raises PersonaInvalid if there may be one in what is too large or too deep to be read.
    """
    if len(text) > _LARGEST_VALUE:
        if may_ask(text.encode("utf-8", "surrogatepass")):
            raise PersonaInvalid(
                f"{'.'.join(path)}: a list or text of {len(text)} characters, wanted at most {_LARGEST_VALUE}, among "
                "which a persona would be found",
                param=".".join(path),
            )
        return
    waiting: list[tuple[tuple[str, ...], Any]] = [(path, text)]
    count = 0
    while waiting:
        here, one = waiting.pop()
        if isinstance(one, _Members):
            found: list[tuple[tuple[str, ...], Any]] = []
            yield from _members_mentions(here, one, found)
        elif isinstance(one, list):
            inside = here if here[-1].endswith("[]") else (*here[:-1], f"{here[-1]}[]")
            found = [(inside, held) for held in one]
        elif isinstance(one, str):
            found = [(here, _read(here, one.lstrip().lstrip("\ufeff")))]
        else:
            continue
        count += len(found)
        if count > _MOST_MEMBERS:
            raise _too_many(path)
        waiting += found


def _members_mentions(
    path: tuple[str, ...], of: _Members, within: list[tuple[tuple[str, ...], Any]]
) -> Iterator[Mention]:
    """The mentions of an object; what its places hold is added to ``within``."""
    if len(of) > _MOST_MEMBERS:
        raise _too_many(path)
    seen: set[str] = set()
    for name, value in of:
        kind = _kind(path, name, seen)
        here = (*path, name)
        if kind == "place":
            yield Mention(here, b"")
            if len(path) < _DEEPEST:
                within.append((here, value))
            elif value and isinstance(value, list | str):
                raise _too_deep(here)
        elif kind == "name" and value is not None:
            # Of a model alone the value matters.
            yield Mention(here, json.dumps(value).encode() if isinstance(value, str) else b"{}")


def _read(path: tuple[str, ...], text: str) -> Any:
    """What a text holds, None if no object, list or text; of one that is not quite JSON, what its names seem to ask for.
    Raises PersonaInvalid if it is too deep and may speak of a persona."""
    if text[:1] not in ("{", "[", '"'):
        return None
    try:
        return json.loads(text, object_pairs_hook=_Members)
    except RecursionError:
        if not _speaks(text.encode("utf-8", "surrogatepass")):
            return None
        raise _too_deep(path) from None
    except ValueError:
        plain = _ESCAPED.sub(lambda code: chr(int(code[1], 16)), text)
        found = ((pair[1].strip("\\"), pair[2] or "") for pair in _PAIR.finditer(plain))
        return _Members(one for one in found if asks(fold(one[0])) or fold(one[0]) == "model")


def _too_many(path: tuple[str, ...]) -> PersonaInvalid:
    param = ".".join(path)
    return PersonaInvalid(
        f"{param or 'the body'}: more than {_MOST_MEMBERS} members", param=param or None
    )


def _too_deep(path: tuple[str, ...]) -> PersonaInvalid:
    param = ".".join(path)
    return PersonaInvalid(f"{param}: is nested too deeply", param=param)


def mentions_of_pairs(place: str, pairs: Iterable[tuple[str, str]]) -> Iterator[Mention]:
    """The same of a query or of form fields. ``metadata[persona]=alice`` is how clients write nested ones."""
    for whole, value in pairs:
        name = whole[:_LARGEST_VALUE]
        path = steps(name)
        for depth, part in enumerate(path, 1):
            here = (place, *path[:depth])
            folded = fold(part)
            if folded not in PLACES:
                loose = _LOOSE if depth > 1 else _LOOSE_AT_TOP
                if asks(folded) or folded in loose or folded == "model":
                    yield Mention(here, json.dumps(value).encode())
                elif asks(fold(name)):
                    yield Mention((place, name[:80]), b"{}")
                break
            if depth > _DEEPEST:
                if _speaks(f"{name} {value}".encode("utf-8", "surrogatepass")):
                    raise _too_deep(here)
                break
        else:
            yield from _nested_in_text((place, *path), value)


def mentions_of_headers(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[Mention]:
    for name, value in headers:
        if asked := _header_name(name):
            yield Mention(("header", asked), json.dumps(value.decode("latin-1")).encode())


def asks_by_header(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(_header_name(name) for name, _ in headers)


def _header_name(name: bytes) -> str:
    """What a request header asks for, such as our reply's own or ``X-Persona``; empty for all others."""
    if name == _ADAPTER_HEADER:
        return "model"
    bare = name.translate(None, _BETWEEN)
    if b"persona" not in bare and b"palign" not in bare:
        return ""
    read = name.decode("latin-1")
    return read if asks(fold(read)) else ""


def wish(found: Sequence[Mention], served: Sequence[str], *, any_model: bool, scope: Scope) -> Wish:
    """Whom ``found`` asks for, on a path where everything of ``APPLIED`` is applied.

    ``served`` are the names of models here; with ``any_model`` others are answered too; ``scope`` is that of
    requests that name none. Raises PersonaInvalid for
    what would not be applied, PersonaConflict, and ValueError for text that is not JSON.
    """
    applied: dict[tuple[str, ...], Any] = {}
    for mention in found:
        if mention.path in APPLIED:
            applied[mention.path] = _once(mention)
        elif asks(mention.name) or (
            mention.name == "model" and parse_model(mention.short, served, any_model=any_model)
        ):
            raise _not_applied(mention)
        elif mention.path == ("cache_salt",):
            check_salt(mention.short)
    suffix = parse_model(applied.get(("model",)), served, any_model=any_model)
    metadata = {path[1]: value for path, value in applied.items() if len(path) == 2}
    asked = {
        "persona": parse_persona(applied.get(("persona",))),
        "metadata": parse_metadata(metadata),
        "model": suffix[1] if suffix else None,
    }
    selection = agree(
        {place: value.with_default(scope) for place, value in asked.items() if value is not None}
    )
    if selection is None:
        return Wish()
    for mention in found:
        if mention.name in _LOOSE_AT_TOP:
            raise PersonaInvalid(
                f"{mention.param}: stands beside the persona and would not be applied; write it into the persona, "
                '"persona": {"id": "alice", "strength": 1.5}, or as persona_strength or persona_scope into metadata',
                param=mention.param,
            )
        if mention.path == ("use_beam_search",) and mention.value:
            raise PersonaInvalid(
                "persona: beam search is not steered, because vLLM gives its beams parameters of their own; "
                "leave use_beam_search out",
                param="use_beam_search",
            )
    places = tuple(place for place, value in asked.items() if value is not None)
    return Wish(selection, suffix[0] if suffix else None, places)


def _once(mention: Mention) -> Any:
    """Its value, in which no key of a persona or a blend may be there twice."""
    if mention.path == ("model",):
        return mention.short
    value = mention.value
    mix = value.get("mix") if isinstance(value, dict) else None
    for place, part in ((mention.param, value), (f"{mention.param}.mix", mix)):
        if isinstance(part, _Repeating):
            param = f"{place}.{part.repeated}"
            raise PersonaInvalid(f"{param}: the key is there twice", param=param)
    return value


def _not_applied(mention: Mention) -> PersonaInvalid:
    if mention.name == REQUEST_KEY and any(fold(part) in _WRITTEN_BY_HAND for part in mention.path):
        return reserved(mention.path[0])
    within = {fold(part) for part in mention.path[:-1]}
    hint = (
        "; extra_body is how the OpenAI Python client is given further fields, in the body itself they stand "
        'beside "model"'
        if "extrabody" in within
        else ""
    )
    return PersonaInvalid(
        f"{mention.param}: no persona is asked for in this way, so nothing would apply it; send JSON with "
        f'"persona": "alice" or "persona": {{"id": "alice", "strength": 1.5}} beside "model"{hint}',
        param=mention.param,
    )


def granted(body: bytes, found: Sequence[Mention], model: str | None, token: str) -> list[bytes]:
    """``body``, in pieces, with ``token`` under the reserved key, without the field ``persona``, and with
    ``model`` unless it is None. Everything else stays byte for byte what the client sent.

    Raises PersonaInvalid when ``vllm_xargs`` is no object.
    """
    at_top = {mention.path[0]: mention.member for mention in found if mention.member is not None}
    entry = json.dumps(REQUEST_KEY) + ":" + json.dumps(token)
    edits = _renaming(at_top, model)
    xargs, persona = at_top.get("vllm_xargs"), at_top.get("persona")
    if xargs is None:
        whole = f'"vllm_xargs":{{{entry}}}'
        if persona is not None:
            edits.append((persona.start, persona.end, whole))
        else:
            at, _ = first_member(body, 0)
            edits.append((at, at, f"{whole},"))
        return _edited(body, edits)
    if persona is not None:
        edits.append((*without(body, persona), ""))
    if body[xargs.value : xargs.end] == b"null":
        edits.append((xargs.value, xargs.end, f"{{{entry}}}"))
    elif body[xargs.value : xargs.value + 1] == b"{":
        at, more = first_member(body, xargs.value)
        edits.append((at, at, f"{entry}," if more else entry))
    else:
        raise PersonaInvalid("vllm_xargs: wanted an object", param="vllm_xargs")
    return _edited(body, edits)


def renamed(body: bytes, found: Sequence[Mention], model: str) -> list[bytes]:
    """``body``, in pieces, with ``model`` as the name of its model."""
    at_top = {mention.path[0]: mention.member for mention in found if mention.member is not None}
    return _edited(body, _renaming(at_top, model))


def _renaming(at_top: Mapping[str, Member], model: str | None) -> list[tuple[int, int, str]]:
    if model is None:
        return []
    member = at_top["model"]
    return [(member.value, member.end, json.dumps(model))]


def _edited(body: bytes, edits: list[tuple[int, int, str]]) -> list[bytes]:
    """``body`` with the spans (start, end) replaced, in pieces: one copy of 64 MiB would hold the
    interpreter for as long as it takes."""
    pieces, done = [], 0
    for start, end, text in [*sorted(edits), (len(body), len(body), "")]:
        pieces += [body[at : min(at + _WINDOW, start)] for at in range(done, start, _WINDOW)]
        pieces.append(text.encode())
        done = end
    return pieces


def parse_metadata(metadata: object) -> Selection | None:
    """OpenAI ``metadata``: ``{"persona": "alice", "persona_strength": "1.5", "persona_scope": "all"}``; other keys
    are not ours."""
    if not isinstance(metadata, Mapping):
        return None  # vLLM's own validation answers for the field as such
    name, strength = metadata.get("persona"), metadata.get("persona_strength")
    scope = metadata.get("persona_scope")
    if name is None:
        for key, value in (("persona_strength", strength), ("persona_scope", scope)):
            if value is not None:
                raise PersonaInvalid(
                    f"metadata.{key} is set but metadata.persona is not; name the persona",
                    param=f"metadata.{key}",
                )
        return None
    return Selection(
        ((parse_id(name, "metadata.persona"), 1.0),),
        1.0 if strength is None else parse_number(strength, "metadata.persona_strength"),
        parse_scope(scope, "metadata.persona_scope"),
    )


def parse_model(
    model: object, served: Sequence[str], *, any_model: bool = False
) -> tuple[str, Selection] | None:
    """``MODEL@persona``: the model and whom the suffix asks for, or None if there is no suffix.

    A name that is itself served is taken as it is, ``@`` or not. A base that is not served is left to vLLM,
    which answers that there is no such model, unless it answers to ``any_model``.
    """
    if not isinstance(model, str) or model in served:
        return None
    base, at, name = model.rpartition("@")
    if not at or not (base in served or any_model):
        return None
    if base not in served and base.rpartition("@")[0] in served:
        raise PersonaInvalid(
            f"model: {ascii(model)[:80]} names two personas; blend them with the field "
            '"persona": {"mix": {...}}',
            param="model",
        )
    return base, Selection(((parse_id(name, "model"), 1.0),))


def agree(asked: Mapping[str, Selection]) -> Selection | None:
    """The one selection of all places of a request that name a persona.

    Raises PersonaConflict when two of them differ.
    """
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
