"""Processes that begin with vLLM imported: ``engine/warm_process.py``, one for each of vLLM's model runners. Servers
have the first."""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 400
"""Seconds after which a script is killed."""

RUNNERS: dict[str, dict[str, str]] = {
    "v1": {"VLLM_USE_V2_MODEL_RUNNER": "0"},
    "v2": {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"},
}


def variables(changes: dict[str, str | None]) -> dict[str, str]:
    """The environment with these changes; a variable that is None is unset."""
    changed = {**os.environ, **changes}
    return {name: value for name, value in changed.items() if value is not None}


def kill_group(pid: int) -> None:
    """Whether or not it has ended."""
    assert pid > 1
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


class Forked:
    """As much of ``subprocess.Popen`` as servers need, for a process that is another one's child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle: int | None = None
        with suppress(ProcessLookupError):
            self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """0 if it has ended, however it did."""
        return 0 if self._ends_within(0) else None

    def wait(self, timeout: float | None = None) -> int:
        if not self._ends_within(timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return 0

    def send_signal(self, number: int) -> None:
        """Nothing happens if it has ended, as with Popen."""
        with suppress(ProcessLookupError):
            if self._handle is not None:
                signal.pidfd_send_signal(self._handle, number)

    def _ends_within(self, seconds: float | None) -> bool:
        return self._handle is None or bool(select.select([self._handle], [], [], seconds)[0])


class Warm:
    """It ends with this process, whose end of the pipe closes then."""

    def __init__(self, runner: str) -> None:
        self.environment = RUNNERS[runner]
        self.log = os.fdopen(os.memfd_create("log"), "w+")
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "engine" / "warm_process.py", runner],
            env=variables({**self.environment, "HF_HUB_OFFLINE": "1"}),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, bufsize=1,
        )  # fmt: skip

    def run(
        self,
        script: Path,
        arguments: list[str],
        folder: Path,
        environment: dict[str, str | None],
        stdin: str = "",
    ) -> tuple[int, str]:
        """The script's exit code and what it printed."""
        self._ask(script, arguments, folder, variables(environment), stdin)
        process = self._answer()
        too_long = threading.Timer(LONGEST, kill_group, (process,))
        too_long.daemon = True
        too_long.start()
        try:
            code = self._answer()
        except BaseException:
            kill_group(process)
            raise
        finally:
            too_long.cancel()
        return code, (folder / "log.txt").read_text(errors="replace")

    def start(
        self, script: Path, arguments: list[str], folder: Path, environment: dict[str, str]
    ) -> Forked:
        """The same, not waited for, with exactly these variables; what it prints is in the folder's log.txt."""
        self._ask(script, arguments, folder, environment, server=True)
        return Forked(self._answer())

    def end(self) -> None:
        self.process.communicate()

    def _ask(
        self,
        script: Path,
        arguments: list[str],
        folder: Path,
        environment: dict[str, str],
        stdin: str = "",
        server: bool = False,
    ) -> None:
        (folder / "stdin.txt").write_text(stdin)
        job = {
            "script": str(script),
            "arguments": arguments,
            "folder": str(folder),
            "environment": environment,
            "server": server,
        }
        assert self.process.stdin
        print(json.dumps(job), file=self.process.stdin)

    def _answer(self) -> int:
        assert self.process.stdout
        answer = self.process.stdout.readline()
        if not answer:
            self.log.seek(0)
            raise AssertionError(self.log.read()[-6000:])
        return int(answer)


@functools.cache
def warm(runner: str = "v1") -> Warm:
    """Started when it is first wanted."""
    return Warm(runner)


def run_vllm(code: str, stdin: str = "", **environment: str | None) -> Any:
    """What ``conftest.run_python`` does, for code that imports vLLM and may as well find it imported."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "code.py").write_text(code)
        exit_code, log = warm().run(
            folder / "code.py", [], folder, {"PYTHONPATH": str(ROOT), **environment}, stdin
        )
    assert exit_code == 0, log[-4000:]
    (result,) = [line for line in log.splitlines() if line.startswith("RESULT ")]
    return json.loads(result.removeprefix("RESULT "))
