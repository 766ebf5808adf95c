"""Fields of a form: what a request that uploads a file says beside it."""

from __future__ import annotations

from email.parser import BytesHeaderParser
from urllib.parse import parse_qsl

_LONGEST = 1 << 16
"""Bytes of a field that are looked at."""
_MOST = 1000
"""Fields of one form, as in Starlette."""


_QUOTED = b"application/x-www-form-urlencoded"


def is_quoted(content_type: bytes) -> bool:
    """Whether fields of this content type may be written as ``%70ersona``."""
    return _kind(content_type) == _QUOTED


def fields(body: bytes, content_type: bytes) -> list[tuple[str, str]] | None:
    """(name, value) of every field, files as empty values, or None if the content type is not a form's."""
    if is_quoted(content_type):
        return query(body)
    if _kind(content_type) != b"multipart/form-data":
        return None
    header = BytesHeaderParser().parsebytes(b"Content-Type: " + content_type + b"\r\n\r\n")
    boundary = header.get_boundary()
    if not boundary:
        return []
    found: list[tuple[str, str]] = []
    delimiter = b"--" + boundary.encode("latin-1", "replace")
    at = body.find(delimiter)
    while at >= 0 and len(found) < _MOST:
        begin = at + len(delimiter)
        at = body.find(b"\r\n" + delimiter, begin)
        part = body[begin : min(begin + 2 * _LONGEST, at if at >= 0 else len(body))]
        at += 2 if at >= 0 else 0
        head, _, content = part.partition(b"\r\n\r\n")
        # The delimiter's own line ends before the first header.
        headers = BytesHeaderParser().parsebytes(head.partition(b"\r\n")[2] + b"\r\n\r\n")
        name = headers.get_param("name", header="content-disposition")
        if isinstance(name, str):
            is_file = headers.get_param("filename", header="content-disposition") is not None
            found.append((name, "" if is_file else content[:_LONGEST].decode("utf-8", "replace")))
    return found


def query(text: bytes) -> list[tuple[str, str]]:
    """The fields of a query string, those without a value too."""
    try:
        return parse_qsl(text.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST)
    except ValueError:  # more fields than that
        return []


def _kind(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()
