"""Runs scripts in processes of their own that begin with vLLM imported, which alone takes ten seconds: ``python
warm_process.py v1``, or ``v2`` for vLLM's V2 model runner.

A line of JSON a script: its file, ``arguments``, ``environment`` (all variables) and the ``folder`` where it runs,
with stdin.txt for its input and log.txt for all it prints. The answers are two lines: the number of the process
that was forked for it, and, when that is over, its exit code.

A server is a script that is not waited for. What a script spawns begins with vLLM imported too.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import runpy
import signal
import socket
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from multiprocessing import forkserver, spawn
from pathlib import Path
from typing import Any, TextIO

import setproctitle
from prometheus_client import values

MODULES = (
    "entrypoints.llm", "entrypoints.cli.main", "entrypoints.cli.serve", "entrypoints.openai.api_server",
    "entrypoints.launchers.api_server.entry", "v1.engine.async_llm", "v1.engine.core", "v1.engine.coordinator",
    "v1.worker.cpu_worker", "v1.executor.multiproc_executor", "model_executor.models.llama",
)  # fmt: skip


def prepare(runner: str) -> None:
    """What all jobs would begin with. No engine, no plugin, no thread: nothing that a fork would break."""
    if runner == "v2":
        import v2_driver

        v2_driver.pretend()
    for module in MODULES:
        importlib.import_module(f"vllm.{module}")
    setproctitle.getproctitle()  # it looks for its place among the variables, and finds it before they change
    gc.freeze()  # a collection would copy what the forks share


def spawn_as_now() -> None:
    """Processes that this one spawns begin as it is now, and with its variables as they are then:
    multiprocessing's server of forks, itself forked in place of started."""
    address = multiprocessing.connection.arbitrary_address("AF_UNIX")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        ended, alive = os.pipe()
        process = os.fork()
        if not process:
            os.close(alive)
            try:
                forkserver.main(listener.fileno(), ended, [])
            finally:
                os._exit(0)
    os.close(ended)
    known: Any = forkserver._forkserver
    known._forkserver_address = address
    known._forkserver_alive_fd = alive
    known._forkserver_pid = process
    contexts: Any = multiprocessing.context._concrete_contexts
    contexts["spawn"] = contexts["forkserver"]


def begin_with(environment: dict[str, str]) -> None:
    """Has these variables, and whatever was imported knows it."""
    os.environ.clear()
    os.environ.update(environment)
    values.ValueClass = values.get_value_class()


def hand_on_the_environment() -> None:
    """multiprocessing's server of forks gives each the variables that it was itself started with."""
    described, begin = spawn.get_preparation_data, spawn.prepare

    def describe(name: str) -> dict[str, Any]:
        return {**described(name), "environment": dict(os.environ)}

    def prepare(data: dict[str, Any]) -> None:
        begin_with(data["environment"])
        begin(data)

    spawn.get_preparation_data, spawn.prepare = describe, prepare  # type: ignore[assignment]


def run(
    script: str, arguments: list[str], folder: str, environment: dict[str, str], server: bool
) -> None:
    """The forked process: as if it had been started so."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()  # what ends it ends its engines too
    os.chdir(folder)
    begin_with(environment)
    tempfile.tempdir = None
    os.dup2(os.open("stdin.txt", os.O_RDONLY), 0)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdin = os.fdopen(0)  # the old one has read ahead
    sys.argv = [script, *arguments]
    path = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:1] = [str(Path(script).parent), *path]
    spawn_as_now()
    runpy.run_path(script, run_name="__main__")


def fork(job: dict[str, Any], answers: TextIO, interrupt: Any) -> int:
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    answers.close()  # or nobody would see that the one that answers has died
    signal.signal(signal.SIGINT, interrupt)
    try:
        run(**job)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    if job["server"]:
        # As when Python ends: what is to be tidied up is, and what would hang does.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # where vLLM logs
    prepare(sys.argv[1])
    hand_on_the_environment()
    servers: set[int] = set()

    def bury(*_: object) -> None:  # who waits for a server's end would take a dead one for alive
        for one in list(servers):
            try:
                gone = os.waitpid(one, os.WNOHANG)[0]
            except ChildProcessError:  # another one died meanwhile, and both were buried
                gone = one
            if gone:
                servers.discard(one)

    signal.signal(signal.SIGCHLD, bury)
    # Ctrl-C is for pytest, which then closes stdin.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        job = json.loads(line)
        process = fork(job, answers, interrupt)
        if job["server"]:
            servers.add(process)
        print(process, file=answers)
        if job["server"]:
            continue
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), file=answers)
    for one in list(servers):
        with suppress(ProcessLookupError):
            os.killpg(one, signal.SIGKILL)
    os._exit(0)  # Python would take seconds to tidy up


if __name__ == "__main__":
    main()
