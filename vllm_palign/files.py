"""Writing a file so that nobody ever finds half of it. Serving and fitting write through here alone."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"
"""How the name of a file ends that is still being written. It begins with a dot, and a killed process may
leave it behind."""


@contextmanager
def replacing(path: str | os.PathLike[str], *, mode: int | None = None) -> Iterator[Path]:
    """A path beside ``path`` to write to; it becomes ``path`` in one step when the block ends without error.

    The file of that name is whole at any moment, the old one or the new one, after a power cut too, and the
    new one once this has returned. ``mode`` are its permissions, and nobody but the owner may read it before;
    None leaves them to the umask. A symbolic link is replaced, not followed. Raises OSError.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        if mode is not None:
            part.touch(mode=0o600, exist_ok=False)
        yield part
        _sync(part)
        if mode is not None:
            part.chmod(mode)
        part.replace(path)
        # The new file is in place. Some network file systems cannot sync a folder.
        with suppress(OSError):
            _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(
    path: str | os.PathLike[str], data: bytes | memoryview, *, mode: int | None = None
) -> None:
    """Write ``data`` to ``path``, with the promise of ``replacing``. Raises OSError."""
    with replacing(path, mode=mode) as part:
        part.write_bytes(data)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
