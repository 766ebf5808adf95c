"""Look: the personas a key may see, and one's card, or two beside each other."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vllm_palign.errors import PersonaInvalid
from vllm_palign.persona import Persona
from vllm_palign.play.client import Server, Trouble
from vllm_palign.play.plots import head_map
from vllm_palign.play.words import TRAITS, listed, number

SHOWN = 20
"""Personas on one page."""
SEARCHED = 20_000
"""Personas looked at before a search stops and says so."""
LARGEST_LINK = 1 << 20
"""Bytes of a file that a page can hold as a link."""

Changes = dict[Any, Any]


@dataclass(frozen=True)
class Plan:
    """What was asked about: to delete ``name`` with ``key``, or to replace it by ``data``."""

    key: str
    name: str
    data: bytes | None


class Look:
    """The view. ``changed`` tells the page that the personas are others now."""

    def __init__(self, server: Server, key: gr.State) -> None:
        self._server, self._key = server, key
        self.starts = gr.State([""])
        self.changed = gr.State(0)
        self.chosen = gr.State("")
        with gr.Row():
            with gr.Column(scale=2, min_width=270):
                self.search = gr.Textbox(
                    "",
                    label="Search",
                    placeholder="part of a name or description",
                    elem_id="search",
                )
                self.list = gr.Radio(
                    [], label="Personas", elem_id="list", elem_classes="palign-list"
                )
                self.count = gr.HTML(elem_id="count")
                with gr.Row():
                    self.earlier = gr.Button(
                        "Earlier", size="sm", interactive=False, elem_id="earlier", min_width=90
                    )
                    self.later = gr.Button(
                        "Later", size="sm", interactive=False, elem_id="later", min_width=90
                    )
                self.beside = gr.Dropdown(
                    [], label="Beside it", info="A second persona to compare.", allow_custom_value=True,
                    value=None, elem_id="beside",
                )  # fmt: skip
            with gr.Column(scale=5, min_width=300):
                with gr.Row(elem_id="cards"):
                    self.card = gr.HTML(elem_id="card", min_height=60)
                    self.other = gr.HTML(elem_id="other", visible=False)
                with gr.Row(visible=False, elem_id="manage") as self.manage:
                    self.replacement = gr.UploadButton(
                        "Replace by a file",
                        file_types=[".safetensors"],
                        size="sm",
                        elem_id="replace",
                    )
                    self.delete = gr.Button("Delete", size="sm", variant="stop", elem_id="delete")
                with gr.Column(visible=False, elem_id="sure") as self.sure:
                    self.question = gr.HTML()
                    with gr.Row():
                        self.do_it = gr.Button(
                            "Yes, do it", size="sm", variant="stop", elem_id="do-it"
                        )
                        self.keep = gr.Button("No, keep it", size="sm", elem_id="keep")
                self.told = gr.HTML(elem_id="look-told")
        self.planned = gr.State(None)
        self.shown_to = gr.State(None)
        """The key that sees what is shown."""
        self._wire()

    async def ready(
        self, key: str, search: str, starts: list[str], chosen: str | None, shown_to: str | None
    ) -> Changes:
        """The page that is shown, once more; ``chosen`` stays so if it is still there. Another key sees nothing of
        what this one saw."""
        if key != shown_to:
            return {**self.nothing(), **await self._page(key, search, [""]), self.shown_to: key}
        return await self._page(key, search, starts[:-1] or [""], chosen)

    @property
    def inputs(self) -> list[Any]:
        """All that ``ready`` wants to know beside the key."""
        return [self.search, self.starts, self.list, self.shown_to]

    def nothing(self) -> Changes:
        """The view before anything was seen."""
        return {
            **self._no_card(), self.list: gr.update(choices=[], value=None), self.count: "",
            self.planned: None, self.told: "",
            self.shown_to: None,
        }  # fmt: skip

    async def _found(self, key: str, search: str, chosen: str | None) -> Changes:
        return await self._page(key, search, [""], chosen)

    @property
    def outputs(self) -> list[Any]:
        """All that ``ready`` may change."""
        return [*self._paged, *self._cards_parts, self.planned, self.shown_to]

    @property
    def _paged(self) -> list[Any]:
        return [self.list, self.count, self.earlier, self.later, self.starts]

    @property
    def _cards_parts(self) -> list[Any]:
        return [self.card, self.other, self.manage, self.chosen, self.sure, self.told]

    @property
    def show(self) -> dict[str, Any]:
        """An event's arguments: the cards of whom is chosen, as the server has them now."""
        return {
            "fn": self._cards, "inputs": [self._key, self.list, self.beside],
            "outputs": self._cards_parts, "show_progress": "hidden", "api_visibility": "private",
        }  # fmt: skip

    def _wire(self) -> None:
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on(
            [self.search.change], self._found, [self._key, self.search, self.list], self._paged,
            trigger_mode="always_last", **quick,
        )  # fmt: skip
        turn = {"inputs": [self._key, self.search, self.starts], "outputs": self._paged, **quick}
        self.later.click(self._later, **turn)
        self.earlier.click(self._earlier, **turn)
        self.list.change(**self.show)
        self.beside.change(**self.show)
        asks = [self.sure, self.question, self.planned, self.told]
        self.delete.click(self._plan_delete, [self._key, self.chosen], asks, **quick)
        self.replacement.upload(
            self._plan_replace, [self._key, self.chosen, self.replacement], asks, **quick
        )
        self.keep.click(
            lambda: (gr.update(visible=False), None), None, [self.sure, self.planned], **quick
        )
        self.do_it.click(
            self._do, [self._key, self.planned, self.changed, self.beside],
            [*self._cards_parts, self.planned, self.changed, self.list], **quick,
        )  # fmt: skip

    async def _later(self, key: str, search: str, starts: list[str]) -> Changes:
        return await self._page(key, search, starts)

    async def _earlier(self, key: str, search: str, starts: list[str]) -> Changes:
        # Last is where the next page begins, before it where this one does.
        return await self._page(key, search, starts[:-2] or [""])

    async def _page(
        self, key: str, search: str, starts: list[str], chosen: str | None = None
    ) -> Changes:
        """The page that begins after ``starts[-1]``; its end is put behind."""
        after, looked, more = starts[-1], 0, True
        found: list[dict[str, Any]] = []
        try:
            while more and len(found) < SHOWN and looked < SEARCHED:
                page = await self._server.personas(
                    key, after=after, limit=1000 if search else SHOWN
                )
                more = page.more
                for at, persona in enumerate(page.personas):
                    looked, after = looked + 1, persona["id"]
                    if _matches(persona, search):
                        found.append(persona)
                    if len(found) == SHOWN:
                        more = more or at + 1 < len(page.personas)
                        break
        except Trouble as trouble:
            return {
                self.list: gr.update(choices=[], value=None), self.count: _told(trouble.sentence, "trouble"),
                self.earlier: gr.update(interactive=False), self.later: gr.update(interactive=False),
                self.starts: [""],
            }  # fmt: skip
        if found:
            text = f"{found[0]['id']} to {found[-1]['id']}" if len(found) > 1 else "one persona"
        else:
            text = "None here." if starts[-1] or search else "There is no persona yet. Make one."
        if looked >= SEARCHED and more:
            text += f" Searched as far as {after}; “Later” goes on."
        return {
            self.list: gr.update(
                choices=[(_label(one), one["id"]) for one in found],
                # Whoever is still there stays chosen, or somebody else whom one chose meanwhile.
                **({} if any(one["id"] == chosen for one in found) else {"value": None}),
            ),
            self.count: _told(text, "hint"),
            self.earlier: gr.update(interactive=len(starts) > 1),
            self.later: gr.update(interactive=more),
            self.starts: [*starts, after],
        }

    async def _cards(self, key: str, name: str | None, beside: str | None) -> Changes:
        if not name:
            return self._no_card()
        card, known = await self._card(key, name)
        other = (await self._card(key, beside))[0] if beside and beside != name else ""
        mine = known is not None and not known.get("shared")
        return {
            self.card: card, self.other: gr.update(value=other, visible=bool(other)), self.chosen: name,
            self.manage: gr.update(visible=mine), self.sure: gr.update(visible=False), self.told: "",
        }  # fmt: skip

    def _no_card(self) -> Changes:
        return {
            self.card: '<p class="hint">Choose a persona to see its card.</p>',
            self.other: gr.update(value="", visible=False), self.chosen: "",
            self.manage: gr.update(visible=False), self.sure: gr.update(visible=False),
        }  # fmt: skip

    async def _card(self, key: str, name: str) -> tuple[str, dict[str, Any] | None]:
        try:
            persona = await self._server.persona(key, name)
            return card(persona, await self._server.file(key, name)), persona
        except Trouble as trouble:
            return _told(trouble.sentence, "trouble"), None

    def _plan_delete(self, key: str, name: str) -> Changes:
        return self._sure(
            f"Delete {name}? Answers that are being written end with it; after that it is gone.",
            Plan(key, name, None),
        )

    def _plan_replace(self, key: str, name: str, path: str) -> Changes:
        try:
            data = Path(path).read_bytes()
            inside = Persona.from_bytes(data, source=Path(path).name)
        except (PersonaInvalid, OSError) as error:
            return {self.sure: gr.update(visible=False), self.told: _told(str(error), "trouble")}
        finally:
            Path(path).unlink(missing_ok=True)
        return self._sure(
            f"Replace {name} by this file ({inside.name}, {len(inside.layers)} heads)? The old one is gone then.",
            Plan(key, name, data),
        )

    def _sure(self, question: str, planned: Plan) -> Changes:
        return {
            self.sure: gr.update(visible=True), self.question: _told(question, "said"),
            self.planned: planned, self.told: "",
        }  # fmt: skip

    async def _do(
        self,
        key: str,
        planned: Plan | None,
        changed: int,
        beside: str | None,
    ) -> Changes:
        if planned is None or planned.key != key:
            return {self.sure: gr.update(visible=False), self.planned: None}
        name = planned.name
        try:
            if planned.data is None:
                await self._server.delete(key, name)
            else:
                await self._server.put(key, name, planned.data, replace=True)
        except Trouble as trouble:
            return {
                self.sure: gr.update(visible=False), self.planned: None,
                self.told: _told(trouble.sentence, "trouble"),
            }  # fmt: skip
        gone = planned.data is None
        changes = self._no_card() if gone else await self._cards(key, name, beside)
        said = f"{name} is deleted." if gone else f"{name} is replaced."
        return {
            **changes,
            self.planned: None,
            self.changed: changed + 1,
            self.told: _told(said, "said"),
        }


def _matches(persona: Mapping[str, Any], search: str) -> bool:
    wanted = search.strip().lower()
    return wanted in persona["id"].lower() or wanted in str(persona.get("description", "")).lower()


def _label(persona: Mapping[str, Any]) -> str:
    text = str(persona.get("description") or "")
    text = text if len(text) <= 60 else text[:59] + "…"
    shared = " (shared)" if persona.get("shared") else ""
    return f"{persona['id']}{shared}{f' · {text}' if text else ''}"


def card(persona: Mapping[str, Any], data: bytes | None) -> str:
    """One persona as HTML, from its metadata and, where the server hands it out, its file."""
    fit = persona.get("fit") or {}
    rows = {
        "Model": persona["base_model"],
        "Made": datetime.fromtimestamp(persona["created"], UTC).strftime("%d %B %Y, %H:%M UTC"),
        "By": f"{persona['method']}{', ' + str(fit['tool']) if fit.get('tool') else ''}",
        "Steered": f"{persona['steered_heads']} of {persona['num_layers'] * persona['num_heads']} heads",
        "At strength 1": f"alpha {number(persona['alpha'])}",
        **(
            {"At most": f"strength {number(fit['max_strength'])}"}
            if fit.get("max_strength")
            else {}
        ),
        **dict(_figures(fit)),
        "File": f"{persona['bytes']:,} bytes".replace(",", " "),
        "Digest": persona["digest"],
    }
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in rows.items()
    )
    warnings = "".join(
        f'<p class="trouble">{escape(str(text))}</p>' for text in listed(fit.get("warnings"))
    )
    description = f"<p>{escape(persona['description'])}</p>" if persona.get("description") else ""
    shared = '<p class="hint">Shared by the operator.</p>' if persona.get("shared") else ""
    return (
        f'<article class="card"><h2>{escape(persona["id"])}</h2>{description}{shared}'
        f"{_drawn(persona['id'], data)}<dl>{facts}</dl>{warnings}</article>"
    )


def _figures(fit: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the fit has measured, as far as it says so."""
    rows = []
    if isinstance(fit.get("answered"), int):
        rows.append(("Answers", str(fit["answered"])))
    if isinstance(fit.get("sliders"), dict):
        rows.append(
            (
                "Traits",
                ", ".join(
                    f"{TRAITS.get(k, k)} {number(v)}"
                    for k, v in fit["sliders"].items()
                    if isinstance(v, (int, float)) and v
                ),
            )
        )
    for field, label in (("alignment", "Alignment"), ("expected_alignment", "Expected alignment")):
        if isinstance(fit.get(field), (int, float)):
            rows.append((label, number(fit[field]) + (", weak" if fit.get("weak") else "")))
    steered, plain = fit.get("perplexity"), fit.get("perplexity_plain")
    if isinstance(steered, (int, float)) and isinstance(plain, (int, float)) and plain:
        rows.append(
            (
                "Chats",
                f"perplexity {number(steered)}, plain {number(plain)} (× {steered / plain:.3f})",
            )
        )
    return rows


def _drawn(name: str, data: bytes | None) -> str:
    if data is None:
        return '<p class="hint">There is no head map: the server gives the file to its owner\'s managing keys alone.</p>'
    try:
        drawn = head_map(Persona.from_bytes(data))
    except PersonaInvalid as error:
        return f'<p class="trouble">{escape(str(error))}</p>'
    if len(data) > LARGEST_LINK:
        return drawn
    link = base64.b64encode(data).decode()
    return (
        f'{drawn}<p><a class="download" download="{escape(name)}.safetensors" '
        f'href="data:application/octet-stream;base64,{link}">Download {escape(name)}.safetensors</a></p>'
    )


def _told(text: str, style: str) -> str:
    role = "alert" if style == "trouble" else "status"
    return f'<p class="{style}" role="{role}">{escape(text)}</p>'
