"""``palign play``: the page beside a server."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import webbrowser
from typing import Annotated
from urllib.parse import urlsplit

import typer


def play(
    server: Annotated[
        str, typer.Option(help="The server's address.", metavar="URL")
    ] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str,
        typer.Option(
            help="Used where a tab brings no key of its own.",
            envvar="PALIGN_API_KEY",
            show_default=False,
        ),
    ] = "",
    port: Annotated[
        int, typer.Option(help="The page's port on this machine.", min=1, max=65535)
    ] = 7860,
) -> None:
    """Open a page where a person meets personas, makes one from answers, and looks at them.

    The page is for this machine alone (127.0.0.1) and loads nothing from elsewhere. Ctrl-C ends it.
    """
    try:
        address = urlsplit(server)
        wrong = address.scheme not in ("http", "https") or not address.hostname
        address.port  # noqa: B018  raises for a port that is no number
    except ValueError:
        wrong = True
    if wrong:
        raise typer.BadParameter(
            f"got {server!r}, wanted an address such as http://127.0.0.1:8000",
            param_hint="--server",
        )
    if "@" in address.netloc:
        raise typer.BadParameter(
            "the address holds a password, which the page would show; give a key with --api-key",
            param_hint="--server",
        )
    if _taken(port):
        raise typer.BadParameter(
            f"port {port} is in use by another program; take another, such as {port + 1}",
            param_hint="--port",
        )
    try:
        from vllm_palign.play.client import Server
        from vllm_palign.play.page import HOST, serve
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "httpx"):
            raise
        typer.echo(f"{error.name} is not installed; pip install 'vllm-palign[play]'", err=True)
        raise typer.Exit(1) from None
    url = f"http://{HOST}:{port}"
    typer.echo(f"The page for {server}: {url}")
    if _has_screen():
        threading.Thread(target=_open_when_there, args=(port, url), daemon=True).start()
    serve(Server(server, api_key), port)


def _open_when_there(port: int, url: str) -> None:
    """A browser that comes before the page says that nobody answers."""
    for _ in range(600):
        if _taken(port):
            webbrowser.open(url)
            return
        time.sleep(0.1)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _has_screen() -> bool:
    """Whether a browser that was opened would be seen, and no program or test started this."""
    screen = (
        sys.platform in ("darwin", "win32")
        or "DISPLAY" in os.environ
        or "WAYLAND_DISPLAY" in os.environ
    )
    return screen and sys.stdout.isatty()
