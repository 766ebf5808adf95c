"""The registry of a server that was given none: a SQLite file that lives as long as the server."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path


def private_store() -> str:
    """A URL for this server's own processes. The folder is removed when this process exits, not when one
    forked from it does."""
    folder = tempfile.mkdtemp(prefix="palign-")
    atexit.register(_remove, folder, os.getpid())
    return f"sqlite:///{Path(folder) / 'registry.sqlite'}"


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


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
