"""Reading what users hand in: bounded, strict, one clear error; writing it back whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palign_fit.errors import InputError
from vllm_palign.container import STRICT_JSON
from vllm_palign.files import write_bytes as replace_bytes

MAX_BYTES = 64 * 1024 * 1024
LOOKED_AT = 512
"""Bytes from which ``refuse_unreadable`` tells what a file is."""

_BEGINNINGS = {
    b"\x1f\x8b": "gzip-compressed; unpack it first",
    b"PK": "a zip archive (Excel files are, too); unpack it, or save the table as CSV",
    b"\xd0\xcf": "an old Excel file; save the table as CSV",
    b"\x28\xb5": "zstd-compressed; unpack it first",
    b"BZh": "bzip2-compressed; unpack it first",
    b"\xfd7zXZ": "xz-compressed; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"%PDF": "a PDF; save the table as CSV",
    b"{\\rtf": "RTF text of a word processor; save it as plain text",
    b"$FL": "an SPSS file; save the table as CSV",
    b"<stata_dta>": "a Stata file; save the table as CSV",
    b"PAR1": "a Parquet file; save it as CSV or JSON",
    b"ARROW1": "an Arrow file; save it as CSV or JSON",
    b"\xff\xff\xff\xff": "an Arrow file; save it as CSV or JSON",
    b"\xff\xfe": "UTF-16, not UTF-8 text (Excel's Unicode Text is); save it as CSV UTF-8",
    b"\xfe\xff": "UTF-16, not UTF-8 text; save it as UTF-8",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run git lfs pull",
    b"/annex/objects/": "a git-annex pointer, not the file itself; run git annex get",
    b"# xet version": "a Xet pointer, not the file itself; download it through Hugging Face",
}
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")


def refuse_unreadable(start: bytes, source: str) -> None:
    """Name what a file is that begins with ``start`` and is no text of ours. Raises InputError.

    ``start`` holds up to LOOKED_AT bytes.
    """
    first = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    what = next((said for magic, said in _BEGINNINGS.items() if start.startswith(magic)), None)
    if first.startswith(_PAGES):
        what = "a web page (HTML or XML), perhaps of a log-in or an error; download the file itself"
    elif first.startswith(b"--") and b"content-disposition:" in first:
        what = "a form upload with its envelope; send or save the file alone"
    elif start[8:10] == b'{"' and b"\x00" in start[:8]:
        what = "a safetensors file: a persona, or a model's weights"
    elif what is None and b"\x00" in start:
        what = "no text: it holds NUL bytes, as UTF-16 does; save it as UTF-8"
    if what is not None:
        raise InputError(f"{source}: is {what}")


def not_text(error: UnicodeDecodeError, source: str) -> InputError:
    """What to say of bytes that cannot be decoded."""
    return InputError(f"{source}: is not UTF-8 text ({error.reason}); save it as UTF-8")


def unreadable(error: Exception, path: Path) -> InputError:
    """What to say of a file that cannot be opened, or read on."""
    return InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}")


def read_text(path: Path) -> str:
    """The UTF-8 text of ``path``, a byte order mark removed. Raises InputError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(error, path) from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: is larger than {MAX_BYTES // 2**20} MiB, the most that is read")
    refuse_unreadable(data[:LOOKED_AT], str(path))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_text(error, str(path)) from error


def strict_json(text: str, source: str) -> Any:
    """json.loads that refuses NaN, Infinity and repeated keys. Raises InputError."""
    try:
        return STRICT_JSON.decode(text)
    except RecursionError as error:
        raise InputError(f"{source}: is nested too deeply to be read as JSON") from error
    except ValueError as error:
        raise InputError(f"{source}: is not valid JSON: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in one step: the file is there whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` in one step: the file is there whole or not at all."""
    try:
        replace_bytes(path, data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
