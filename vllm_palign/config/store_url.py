"""The registry of a server that was given none: a SQLite file that lives as long as the server."""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

_PREFIX = "palign-registry-"
_LOCK = ".palign-lock"
_FILE = "registry.sqlite"


def private_store() -> str:
    """A URL for this server's own processes. The folder is removed when this process exits, not when one
    forked from it does. Where a process was killed, the next one to make a store removes what it left."""
    _sweep()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        # Held as long as this process or one that it forked lives, however they end.
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_WRONLY, 0o600)
        with suppress(OSError):  # a file system without locks: then nobody sweeps there either
            fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():
            break
        os.close(lock)  # another process swept it away before it was locked
    atexit.register(_remove_own, folder, os.getpid())
    return f"sqlite:///{folder / _FILE}"


def _remove_own(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        _remove(folder)


def _remove(folder: Path) -> None:
    """What a store consists of, and the folder if it held nothing else."""
    with suppress(OSError):
        for name in (_FILE, f"{_FILE}-wal", f"{_FILE}-shm", f"{_FILE}-journal", _LOCK):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _sweep() -> None:
    """Remove the stores of this user's processes that are gone."""
    for file in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        with suppress(OSError):  # another user's, or another process is at it
            if file.lstat().st_uid != os.getuid():
                continue
            lock = os.open(file, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(file.parent)
            finally:
                os.close(lock)


class StoreUrl(str):
    """A URL whose password stays out of ``repr``: vLLM logs its arguments."""

    def __repr__(self) -> str:
        return repr(_QUERY.sub(r"\1***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", self)))


def without_passwords(text: str) -> str:
    """``text``, a line of a log say, with ``***`` for what looks like the password of a database's URL."""
    return _QUERY.sub(r"\1***", _AUTHORITY.sub(r"\1:***@", text))


_AUTHORITY = re.compile(r"(\bpostgres[a-z+]*://[^:/@\s]*):\S*@")
# libpq takes these as parameters of the URL too.
_QUERY = re.compile(r"([?&](?:password|sslpassword)=)[^&\s'\"]*", re.IGNORECASE)
