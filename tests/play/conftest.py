"""One real server with tenants, the page beside it, and a browser: one of each for the whole folder.

Between page and server stands a line that tests can cut, as when a server goes away.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    BrowserType,
    Page,
    TimeoutError,
    sync_playwright,
)

from tests.conftest import ONE_PROCESS, ROOT, Server, start_server, stop_server
from tests.directions import tiny_directions
from tests.personas import SMOLLM2
from vllm_palign import Persona
from vllm_palign.directions import to_bytes

CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]  # fmt: skip

# Python reads it before anything else and writes down every address the process asks for.
_WATCH = """
import os, sys
def heard(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect":
        host = arguments[1][0] if isinstance(arguments[1], tuple) else None
    else:
        return
    if host not in (None, "127.0.0.1", "localhost", b"127.0.0.1", b"localhost"):
        with open(os.environ["PALIGN_TEST_FOREIGN"], "a") as log:
            print(host, file=log)
sys.addaudithook(heard)
"""


def in_thread(work: Coroutine[Any, Any, Any]) -> Any:
    """Run it where no loop runs: Playwright has one in this thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


class Line:
    """Forwards TCP connections to ``target`` until it is cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accept()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        # close alone leaves accept waiting with the port open.
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._accept()

    def _accept(self) -> None:
        threading.Thread(target=self._run, args=(self._listener,), daemon=True).start()

    def _run(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@dataclass
class World:
    """A server as acme's keys see it, and the page's address."""

    server: Server
    keys: dict[str, str]
    line: Line
    url: str
    log: Path
    foreign: Path
    """What the page's process asked of other machines, a line each."""

    def call(self, method: str, path: str, key: str = "manage", **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.keys[key]}", **more.pop("headers", {})}
        return httpx.request(method, self.server.url + path, headers=headers, timeout=60, **more)


@pytest.fixture(scope="package")
def world(
    demo_model: Path,
    smol_personas: tuple[Path, dict[str, Persona]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("play")
    tenants = folder / "tenants.yaml"
    keys = {role: _new_key(tenants, role) for role in ("manage", "use")}
    directions = folder / "directions.safetensors"
    directions.write_bytes(to_bytes(tiny_directions(**SMOLLM2)))
    running = start_server(
        demo_model, folder / "server.log", "--plugin", "palign", "--palign-tenants", str(tenants),
        "--palign-directions", str(directions), "--enforce-eager", "--max-model-len", "1024",
        "--max-num-seqs", "8", "--dtype", "float32", *ONE_PROCESS,
    )  # fmt: skip
    line = Line(int(running.url.rpartition(":")[2]))
    made = World(running, keys, line, "", folder / "page.log", folder / "foreign.log")
    try:
        for name in ("alice", "bob"):
            data = (smol_personas[0] / f"{name}.safetensors").read_bytes()
            assert made.call("PUT", f"/v1/personas/{name}", content=data).status_code == 201
        with _page(made, folder) as process:
            yield made
            process.terminate()
            try:
                process.wait(20)
            finally:
                process.kill()
        assert not made.foreign.exists(), made.foreign.read_text()
        for key in keys.values():
            assert key not in made.log.read_text()
    finally:
        line.cut()
        stop_server(running)


def _new_key(file: Path, role: str) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name("palign"), "tenants", "new-key", "acme", "--file", file, "--role", role, "--json"],
        capture_output=True, check=True,
    )  # fmt: skip
    return str(json.loads(done.stdout)["key"])


def _page(world: World, folder: Path) -> subprocess.Popen[bytes]:
    """The real command, watched for what it asks of other machines."""
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(_WATCH)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ, "PYTHONPATH": f"{folder / 'watch'}:{ROOT}", "PALIGN_TEST_FOREIGN": str(world.foreign),
        # As where somebody has turned them on.
        "GRADIO_ANALYTICS_ENABLED": "True", "GRADIO_SHARE": "True", "GRADIO_SERVER_NAME": "0.0.0.0",
    }  # fmt: skip
    with world.log.open("wb") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("palign"), "play", "--server", world.line.url, "--port", str(port)],
            stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder,
        )  # fmt: skip
    world.url = f"http://127.0.0.1:{port}"
    for _ in range(240):
        assert process.poll() is None, world.log.read_text()
        with suppress(httpx.TransportError):
            httpx.get(world.url)
            return process
        time.sleep(0.25)
    process.kill()
    raise AssertionError(world.log.read_text())


@pytest.fixture(scope="package")
def chromium() -> Iterator[BrowserType]:
    with sync_playwright() as playwright:
        yield playwright.chromium


def _options() -> dict[str, Any]:
    found = shutil.which("chromium")
    assert found, "these tests want Chromium: apt-get install --no-install-recommends chromium"
    return {"executable_path": found, "args": CHROMIUM_FLAGS}


@pytest.fixture(scope="package")
def browser(chromium: BrowserType) -> Iterator[Browser]:
    """For windows that are not like the others."""
    running = chromium.launch(**_options())
    yield running
    running.close()


@pytest.fixture(scope="package")
def window(
    chromium: BrowserType, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrowserContext]:
    """A profile on disk keeps the page's compiled scripts: a tab costs two thirds of what it costs otherwise."""
    context = chromium.launch_persistent_context(
        tmp_path_factory.mktemp("profile"), viewport={"width": 1280, "height": 900}, **_options()
    )
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield context
    context.close()


@pytest.fixture
def open_tab(
    request: pytest.FixtureRequest, window: BrowserContext, world: World
) -> Iterator[Callable[..., Page]]:
    """Opens the page in another tab, with ``options`` in another browser, and with one of acme's keys. Whatever a tab asks of another host, and
    whatever fails in its script, ends the test."""
    contexts: list[BrowserContext] = []
    pages: list[Page] = []
    wrong: list[str] = []

    def open_(key: str | None = "manage", wait: bool = True, **options: Any) -> Page:
        context = window
        if options:
            context = request.getfixturevalue("browser").new_context(**options)
            contexts.append(context)
        page = context.new_page()
        pages.append(page)
        page.set_default_timeout(60_000)
        ours = (f"{world.url}/", "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(ours) else wrong.append(r.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(world.url)
        if key is not None:
            give_key(page, world.keys[key])
            if wait:
                page.wait_for_selector(".status.there")
                page.wait_for_selector("#who-1 .token")
                page.get_by_role("button", name="How they answer").click()
                set_number(page, "#longest", 24)  # enough to differ
        return page

    yield open_
    for one in (*pages, *contexts):
        one.close()
    assert not wrong


LONG = "Tell me a long story about a dog and a cat."
"""The plain model, alice and bob go on for 800 tokens and more, with the page's seed; in float32, on every CPU."""


def ask(page: Page, question: str) -> None:
    """And wait until all have answered."""
    before = page.locator("#chat-0 .user.message").count()
    page.locator("#question textarea").fill(question)
    page.locator("#ask").click()
    # The question is shown after the buttons are turned off, which may last too short for anybody to see it.
    page.wait_for_function(
        "n => document.querySelectorAll('#chat-0 .user.message').length > n", arg=before
    )
    _answered(page)


def finish(page: Page) -> None:
    """Wait until all have answered once more."""
    with suppress(TimeoutError):
        page.wait_for_selector("#stop:enabled", timeout=15_000)
    _answered(page)


def _answered(page: Page) -> None:
    # Three long answers are there in seconds, and in a minute where the CPU has no instructions for bfloat16.
    page.wait_for_selector("#ask:enabled", timeout=180_000)
    # What a column says may be drawn a moment after the buttons.
    page.wait_for_function(
        "[...document.querySelectorAll('[id^=figures-]')].every(said => !said.innerText.includes('waiting'))"
    )


def answers(page: Page, column: int) -> list[str]:
    """What one column shows, newest last."""
    return page.locator(f"#chat-{column} .bot.message").all_inner_texts()


def figures(page: Page, column: int) -> str:
    return page.locator(f"#figures-{column}").inner_text()


def drawn(page: Page, selector: str) -> None:
    """Wait until it is there for good. Gradio draws what lay in a closed part of the page, and an animation frame later
    writes what it knows of it once more, over what was typed meanwhile. Nobody types that fast."""
    page.wait_for_selector(selector)
    page.evaluate(
        "() => new Promise(done => { requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)));"
        " setTimeout(done, 5000) })"
    )


def give_key(page: Page, key: str) -> None:
    drawn(page, "#key input")
    page.locator("#key input").fill(key)
    page.locator("#key input").press("Enter")


def set_number(page: Page, selector: str, value: float) -> None:
    """Of a slider, by its box. What was heard is what the slider beside it shows."""
    box, slider = (page.locator(f"{selector} input[type={kind}]") for kind in ("number", "range"))
    drawn(page, f"{selector} input[type=number]")
    for _ in range(50):
        box.fill(str(value))
        box.press("Tab")
        if float(slider.input_value()) == value:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{selector} stays at {slider.input_value()}, not {value}")


def choose(page: Page, column: int, *names: str) -> None:
    """These personas and no others in one column."""
    box = page.locator(f"#who-{column} input")
    box.click()
    for _ in page.locator(f"#who-{column} .token").all():
        box.press("Backspace")
    for count in range(len(names) + 1):
        # What was written is taken away, and only then may more be.
        page.wait_for_function(
            "([at, n]) => document.querySelectorAll(`#who-${at} .token`).length == n",
            arg=[column, count],
        )
        if count < len(names):
            box.fill(names[count])
            box.press("Enter")
    box.press("Tab")
