"""JSON objects as text: where each member stands, without parsing what nobody asked for.

``json.loads`` makes objects of everything and lets go of the interpreter for none of it: 64 MiB stop
every other request for seconds, in whatever thread it runs. What a body says about personas is a few
short members; the rest is skipped, by C calls of at most ``_WINDOW`` bytes each.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

_WINDOW = 1 << 18
_LONGEST_NAME = 1024
"""Bytes of a member's name; longer ones are none of ours."""

_BLANK = re.compile(rb"[ \t\n\r]*+")
_ATOM = re.compile(rb"[^,\]} \t\n\r]*+")
_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
"""What stands before the closing quote."""


def _run(levels: int) -> bytes:
    """Text without a bracket outside strings, but for containers of at most ``levels`` levels."""
    parts = [rb'[^"\[\]{}]++', b'"' + _STRING.pattern + b'"']
    if levels:
        parts.append(rb"[\[{]" + _run(levels - 1) + rb"[\]}]")
    return b"(?:" + b"|".join(parts) + b")*+"


_RUN = re.compile(_run(8), re.DOTALL)
_FLAT = re.compile(_run(0), re.DOTALL)

_QUOTE, _OPENING, _CLOSING = ord('"'), b"[{", b"]}"


class Member(NamedTuple):
    """One ``"name": value`` of an object; all but ``name`` are positions in its text."""

    name: str
    lead: int
    """The comma, or the opening brace, before it."""
    start: int
    value: int
    end: int


def members(text: bytes, begin: int = 0) -> Iterator[Member]:
    """The members of the object that begins at ``begin``, in their order, repeated ones too.

    Takes every object that ``json.loads`` takes, and more. Raises ValueError where it is not an object at all,
    or broken outside its values.
    """
    lead = _expect(text, begin, b"{")
    if _is(text, _after_blank(text, lead + 1), b"}"):
        return
    while True:
        start = _expect(text, lead + 1, b'"')
        name_end = _string_end(text, start)
        value = _after_blank(text, _expect(text, name_end, b":") + 1)
        end = _value_end(text, value)
        yield Member(_name(text, start, name_end), lead, start, value, end)
        lead = _after_blank(text, end)
        if _is(text, lead, b"}"):
            return
        _expect(text, lead, b",")


def utf8(body: bytes) -> bytes:
    """``body`` in UTF-8 without a byte order mark, from any encoding that ``json.loads`` reads.

    Raises ValueError for bytes that are not in that encoding; UTF-8 itself is not checked.
    """
    encoding = json.detect_encoding(body)
    if encoding == "utf-8":
        return body
    if encoding == "utf-8-sig":
        return body[len(codecs.BOM_UTF8) :]
    windows = (body[at : at + _WINDOW] for at in range(0, len(body), _WINDOW))
    pieces = codecs.iterdecode(windows, encoding, "surrogatepass")
    return b"".join(piece.encode("utf-8", "surrogatepass") for piece in pieces)


def without(text: bytes, member: Member) -> tuple[int, int]:
    """The span to cut out of ``text`` so that ``member``, which is not the only one, is gone."""
    if _is(text, member.lead, b","):
        return member.lead, member.end
    return member.start, _after_blank(text, member.end) + 1


def first_member(text: bytes, begin: int) -> tuple[int, bool]:
    """Where a first member of the object at ``begin`` would stand, and whether there is another."""
    at = _expect(text, begin, b"{") + 1
    return at, not _is(text, _after_blank(text, at), b"}")


def _name(text: bytes, start: int, end: int) -> str:
    if end - start > _LONGEST_NAME:
        return ""
    raw = text[start:end].decode("utf-8", "surrogatepass")
    name = json.loads(raw) if "\\" in raw else raw[1:-1]
    assert isinstance(name, str)
    return name


def _expect(text: bytes, at: int, wanted: bytes) -> int:
    """The position of ``wanted``, which must be the next thing that is not blank."""
    at = _after_blank(text, at)
    if not _is(text, at, wanted):
        raise ValueError(f"not JSON: wanted {wanted!r} at byte {at}")
    return at


def _is(text: bytes, at: int, wanted: bytes) -> bool:
    return text[at : at + 1] == wanted


def _value_end(text: bytes, at: int) -> int:
    first = text[at : at + 1]
    if first == b'"':
        return _string_end(text, at)
    if first and first in b"[{":
        return _container_end(text, at)
    end = _after(_ATOM, text, at)
    if end == at:
        raise ValueError(f"not JSON: wanted a value at byte {at}")
    return end


def _container_end(text: bytes, at: int) -> int:
    # What is too deep for one match is entered flat, or each of its levels would be tried again and again.
    depth, at, pattern = 1, at + 1, _RUN
    while True:
        run = pattern.match(text, at, at + _WINDOW)
        assert run is not None
        at = run.end()
        if at >= len(text):
            raise ValueError("not JSON: it ends too early")
        byte = text[at]
        if byte == _QUOTE:
            at = _string_end(text, at)
        elif byte in _OPENING:
            depth += 1
            at, pattern = at + 1, _FLAT
        elif byte in _CLOSING:
            depth -= 1
            at, pattern = at + 1, _RUN
            if not depth:
                return at


def _string_end(text: bytes, start: int) -> int:
    quote = text.find(b'"', start + 1)
    # Most strings, and the very long ones, have no escape before their first quote.
    if quote >= 0 and text[quote - 1 : quote] != b"\\":
        return quote + 1
    end = _after(_STRING, text, start + 1)
    if not _is(text, end, b'"'):
        raise ValueError("not JSON: a string does not end")
    return end + 1


def _after_blank(text: bytes, at: int) -> int:
    return _after(_BLANK, text, at)


def _after(pattern: re.Pattern[bytes], text: bytes, at: int) -> int:
    """Where a match of ``pattern`` ends, found window by window."""
    while True:
        match = pattern.match(text, at, at + _WINDOW)
        assert match is not None
        # An escape that a window cuts in two is left to the next.
        if match.end() < at + _WINDOW - 1:
            return match.end()
        at = match.end()
