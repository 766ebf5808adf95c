"""The page: three views over one server, and how it is served to this machine alone."""

from __future__ import annotations

import os
import tempfile
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vllm_palign.play.client import Page, Server, Trouble
from vllm_palign.play.form import Sheet
from vllm_palign.play.look import Look
from vllm_palign.play.make import Make
from vllm_palign.play.meet import Meet
from vllm_palign.play.words import expectation

HOST = "127.0.0.1"
SECONDS = 5
"""Between two looks whether the server is there."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
    "connect-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
"""Whatever Gradio or an answer's text would load from elsewhere, a browser then does not ask for."""

_HERE = Path(__file__).parent
_RESTORE = """(key, kept) => [
  key || sessionStorage.getItem('palign.key') || '', kept || sessionStorage.getItem('palign.answers') || '']"""
_KEEP_KEY = "key => { sessionStorage.setItem('palign.key', key) }"
_KEEP_ANSWERS = "kept => { sessionStorage.setItem('palign.answers', kept) }"

# Gradio's own greys are too pale to read for some.
_READABLE = {
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_cancel_background_fill": "#b91c1c",
    "button_cancel_background_fill_hover": "#991b1b",
    "button_cancel_text_color": "white",
    "block_info_text_color": "*neutral_600",
    "block_info_text_color_dark": "*neutral_300",
    "block_label_text_color": "*neutral_700",
    "block_title_text_color": "*neutral_700",
    "block_title_text_color_dark": "*neutral_200",
    "body_text_color_subdued": "*neutral_600",
    "body_text_color_subdued_dark": "*neutral_300",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_400",
}

Changes = dict[Any, Any]


class PlayPage:
    """Components and wires of the whole page."""

    def __init__(self, server: Server) -> None:
        self._server = server
        with gr.Blocks(
            title="palign play", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)
        ) as self.blocks:
            self.model = gr.State("")
            # Whether the server has answered once, and what is said to be wrong with it.
            self.met = gr.State(False)
            self.trouble = gr.State("")
            gr.HTML("<h1>Meet personas</h1>", elem_id="title")
            self.status = gr.HTML(
                '<p class="status">Looking for the server …</p>', elem_id="status"
            )
            with gr.Accordion("Server and key", open=False, elem_id="access") as self.access:
                gr.HTML(
                    f'<p class="hint">Server: {escape(server.url)}. The key stays in this tab.</p>'
                )
                self.key = gr.Textbox(
                    "", label="API key", type="password", elem_id="key", submit_btn="Use it",
                    html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False),
                )  # fmt: skip
            # The key that was given, not the one that is being typed: what asks by itself asks with this one.
            self.given = gr.State("")
            self.kept = gr.Textbox("", visible="hidden", show_label=False, elem_id="kept")
            with gr.Tabs(elem_id="views") as self.tabs:
                with gr.Tab("Meet", id="meet"):
                    self.meet = Meet(server, self.given, self.model)
                with gr.Tab("Make", id="make"):
                    self.make = Make(server, self.given, self.kept)
                with gr.Tab("Look", id="look"):
                    self.look = Look(server, self.given)
            self.timer = gr.Timer(SECONDS)
            self._wire()

    def _wire(self) -> None:
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        # One after the other: the later one finds what the earlier has found.
        alone: dict[str, Any] = {"concurrency_id": "connect", "concurrency_limit": 1, **quick}
        people = [*(column.who for column in self.meet.columns[1:]), self.look.beside]
        everything = [
            self.status, self.access, self.model, self.met, self.trouble, *people, *self.make.outputs,
            *self.look.outputs,
        ]  # fmt: skip
        asked = [
            self.given, self.kept, self.make.sheet, self.met, self.trouble, self.model, *self.look.inputs
        ]  # fmt: skip
        # In the tab itself: what somebody types while the server is asked is not written over.
        restored = [self.key, self.kept]
        self.blocks.load(
            None, restored, restored, js=_RESTORE, show_progress="hidden", api_visibility="private"
        ).then(_same, self.key, self.given, **quick).then(self._connect, asked, everything, **alone)
        self.blocks.unload(self.meet.leave)
        # A key that follows another at once is not dropped.
        each: dict[str, Any] = {"trigger_mode": "multiple"}
        self.key.submit(_same, self.key, self.given, **quick, **each).then(
            self._connect, asked, everything, **alone, **each
        )
        self.key.change(None, [self.key], js=_KEEP_KEY, api_visibility="private")
        self.kept.change(None, [self.kept], js=_KEEP_ANSWERS, api_visibility="private")
        self.timer.tick(self._watch, asked, everything, **alone)
        first = self.meet.columns[1]
        for enrolled in self.make.enrolled:
            enrolled.then(
                self._introduce, [self.make.made, self.meet.visible],
                [self.tabs, self.meet.welcome, self.meet.visible, first.box, first.who, first.strength], **quick,
            ).then(self._connect, asked, everything, **alone).then(**self.look.show)  # fmt: skip
        self.look.changed.change(self._connect, asked, everything, **alone)

    async def _connect(
        self,
        key: str,
        kept: str,
        sheet: Sheet | None,
        met: bool,
        _said: str,
        _model: str,
        *look: Any,
    ) -> Changes:
        """Everything that the server decides."""
        try:
            model = await self._server.model(key)
            page = await self._server.personas(key)
        except Trouble as trouble:
            return self._without(trouble)
        return {
            **self._with(model, page, first=not met),
            **await self.make.ready(key, kept, sheet),
            **await self.look.ready(key, *look),
        }

    async def _watch(
        self,
        key: str,
        kept: str,
        sheet: Sheet | None,
        met: bool,
        said: str,
        model: str,
        *look: Any,
    ) -> Any:
        """The server went away, came back, wants a key by now, or serves another model. Else nothing changes."""
        try:
            now = await self._server.model(key)
        except Trouble as trouble:
            return gr.skip() if trouble.sentence == said else self._without(trouble)
        if met and not said and now == model:
            return gr.skip()
        return await self._connect(key, kept, sheet, met, said, now, *look)

    def _with(self, model: str, page: Page, *, first: bool) -> Changes:
        """``first``: nobody is chosen yet, so the first two are."""
        names = [persona["id"] for persona in page.personas]
        count = f"{len(names)}{' and more' if page.more else ''} persona{'' if len(names) == 1 else 's'}"
        text = f"{model} at {self._server.url} · {count}"
        return {
            self.status: f'<p class="status there">{escape(text)}</p>',
            self.model: model,
            self.met: True,
            self.trouble: "",
            self.look.beside: gr.update(choices=names),
            **{
                column.who: gr.update(choices=names, value=[name])
                if first and name
                else gr.update(choices=names)
                for column, name in zip_longest(self.meet.columns[1:], names[:2])
            },
        }

    def _without(self, trouble: Trouble) -> Changes:
        return {
            self.status: f'<p class="status gone" role="alert">{escape(trouble.sentence)}</p>',
            self.trouble: trouble.sentence,
            self.access: gr.update(open=True) if trouble.status == 401 else gr.skip(),
            **(self.look.nothing() if trouble.status in (401, 403) else {}),
        }

    def _introduce(self, made: dict[str, Any] | None, visible: list[bool]) -> Any:
        """To Meet with the persona that was just made, and what may be expected of it."""
        if made is None:
            return gr.skip()
        visible[1] = True
        first = self.meet.columns[1]
        expected = " ".join(expectation(made))
        return {
            self.tabs: gr.update(selected="meet"),
            self.meet.welcome: (
                f'<p class="said" role="status"><strong>{escape(made["id"])}</strong> is there. '
                f"{escape(expected)} Ask something.</p>"
            ),
            self.meet.visible: visible,
            first.box: gr.update(visible=True),
            first.who: gr.update(value=[made["id"]]),
            first.strength: 1.0,
        }


def _same(text: str) -> str:
    return text


class OnlyThisPage:
    """Answers the page's own requests alone, and tells the browser to load nothing from anywhere else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            # The page may hold a key: another site's script must not ask in its name.
            refused = PlainTextResponse("This page answers itself only.", 403)
            await refused(scope, receive, send)
            return

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                sent["content-security-policy"] = POLICY
                sent["referrer-policy"] = "no-referrer"
                sent["x-content-type-options"] = "nosniff"
            await send(message)

        await self._app(scope, receive, with_policy)


def application(server: Server) -> FastAPI:
    """The page as an ASGI app. Nothing of it is shared, measured or recorded."""
    # Components ask this variable, not the page.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=fonts,
        font_mono=["ui-monospace", "monospace"],
    ).set(**_READABLE)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OnlyThisPage)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    gr.mount_gradio_app(
        app, PlayPage(server).blocks, path="/", server_name=HOST, footer_links=[], run_history=False,
        enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False, show_error=True,
        max_file_size="17mb", theme=theme, css_paths=[_HERE / "page.css"],
        head=f"<script>{(_HERE / 'page.js').read_text()}</script>",
    )  # fmt: skip
    return app


def serve(server: Server, port: int) -> None:
    """Until it is interrupted."""
    # What people upload lies in a folder that nobody else may read, until it is read or this ends.
    with tempfile.TemporaryDirectory(prefix="palign-play-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        # Request lines are nobody's business. A tab that is left open must not keep the page from ending.
        uvicorn.run(
            application(server), host=HOST, port=port, log_level="warning", access_log=False,
            # Longer than the page is ever silent: no request of its meets a connection that is being closed.
            timeout_keep_alive=10 * SECONDS, timeout_graceful_shutdown=1,
        )  # fmt: skip
