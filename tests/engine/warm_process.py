"""Runs scripts in processes of their own that begin with vLLM imported, which alone takes ten seconds: ``python
warm_process.py v1``, or ``v2`` for vLLM's V2 model runner.

A line of JSON a script: its file, ``arguments``, ``environment`` (all variables) and the ``folder`` where it runs,
with stdin.txt for its input and log.txt for all it prints. The answers are two lines: the number of the process
that was forked for it, and, when that is over, its exit code.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any


def prepare(runner: str) -> None:
    """What all jobs would begin with. No engine, no plugin, no thread: nothing that a fork would break."""
    if runner == "v2":
        import v2_driver

        v2_driver.pretend()
    for module in ("entrypoints.llm", "v1.engine.async_llm", "v1.worker.cpu_worker"):
        importlib.import_module(f"vllm.{module}")


def run(script: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """The forked process: as if it had been started so."""
    os.setsid()  # what ends it ends its engines too
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    os.dup2(os.open("stdin.txt", os.O_RDONLY), 0)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdin = os.fdopen(0)  # the old one has read ahead
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    runpy.run_path(script, run_name="__main__")


def fork(job: dict[str, Any]) -> int:
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    try:
        run(**job)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # where vLLM logs
    prepare(sys.argv[1])
    for line in sys.stdin:
        process = fork(json.loads(line))
        print(process, file=answers)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), file=answers)
    os._exit(0)  # Python would take seconds to tidy up


if __name__ == "__main__":
    main()
