"""Fields of a form: what a request that uploads a file says beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote_to_bytes

from vllm_palign.errors import PersonaInvalid
from vllm_palign.selection import PLACES, fold, steps

_LONGEST = 1 << 16
"""Bytes of a field, and of what stands before it, that are looked at."""
_MOST = 1000
"""Fields of one form, as in Starlette."""

# In linear time, whatever a client writes; email.message, which others use here, takes seconds for 30 KB of semicolons.
_PARAMETER = re.compile(rb';\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"?|[^;]*)', re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)

_QUOTED = b"application/x-www-form-urlencoded"


def is_quoted(content_type: bytes) -> bool:
    """Whether fields of this content type may be written as ``%70ersona``."""
    return _kind(content_type) == _QUOTED


def fields(body: bytes, content_type: bytes) -> list[tuple[str, str]] | None:
    """(name, value) of every field, files as empty values, or None if the content type is not a form's.

    Raises PersonaInvalid for more fields, more before a field, or more in one that may speak of a persona, than are
    looked at.
    """
    if is_quoted(content_type):
        return query(body, "form")
    if _kind(content_type) != b"multipart/form-data":
        return None
    boundary = _parameter(content_type, b"boundary")
    if not boundary:
        return []
    found: list[tuple[str, str]] = []
    delimiter = b"--" + boundary
    at = body.find(delimiter)
    while at >= 0:
        begin = at + len(delimiter)
        at = body.find(b"\r\n" + delimiter, begin)
        end = at if at >= 0 else len(body)
        at += 2 if at >= 0 else 0
        head_end = body.find(b"\r\n\r\n", begin, min(end, begin + _LONGEST))
        if head_end < 0:
            if end - begin > _LONGEST:
                raise PersonaInvalid(
                    f"form: a part has more than {_LONGEST} bytes before its content", param="form"
                )
            continue
        for disposition in _dispositions(body[begin:head_end]):
            name = _parameter(disposition, b"name")
            if name is None:
                continue
            if len(found) == _MOST:
                raise _too_many("form")
            field, start = name.decode("utf-8", "replace"), head_end + 4
            is_file = _parameter(disposition, b"filename") is not None
            if (
                not is_file
                and end - start > _LONGEST
                and all(fold(step) in PLACES for step in steps(field))
            ):
                raise PersonaInvalid(
                    f"{field[:40]}: a form's field of {end - start} bytes, wanted at most {_LONGEST}, among which a "
                    "persona would be found",
                    param=field[:40],
                )
            content = b"" if is_file else body[start : min(end, start + _LONGEST)]
            found.append((field, content.decode("utf-8", "replace")))
    return found


def query(text: bytes, place: str = "query") -> list[tuple[str, str]]:
    """The fields of a query string, those without a value too. Raises PersonaInvalid for too many, in ``place``."""
    try:
        return parse_qsl(text.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST)
    except ValueError:
        raise _too_many(place) from None


def _too_many(place: str) -> PersonaInvalid:
    return PersonaInvalid(
        f"{place}: more than {_MOST} fields, among which a persona would not be found", param=place
    )


def _dispositions(head: bytes) -> Iterator[bytes]:
    """The values of ``Content-Disposition`` in a part's headers."""
    lines: list[list[bytes]] = []
    # The delimiter's own line ends before the first header.
    for line in head.split(b"\r\n")[1:]:
        if line[:1] in (b" ", b"\t") and lines:
            lines[-1].append(line)
        else:
            lines.append([line])
    for pieces in lines:
        name, _, value = b"".join(pieces).partition(b":")
        if name.strip().lower() == b"content-disposition":
            yield value


def _parameter(header: bytes, name: bytes) -> bytes | None:
    """A parameter of a header, also as RFC 2231 writes it (``name*=utf-8''...``), or None."""
    for key, value in _PARAMETER.findall(header):
        if key.lower().rstrip(b"*") != name:
            continue
        if value[:1] == b'"':
            value = _ESCAPED.sub(rb"\1", value[1:].removesuffix(b'"'))
        return unquote_to_bytes(value.rpartition(b"'")[2]) if key.endswith(b"*") else value.strip()
    return None


def _kind(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()
