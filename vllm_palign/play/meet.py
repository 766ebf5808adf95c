"""Meet: one question, answered side by side by the plain model and up to three personas."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from html import escape
from typing import Any

import gradio as gr

from vllm_palign.play import snippets
from vllm_palign.play.client import Server, Trouble
from vllm_palign.play.conversation import Conversation, Sampling, Turn, Wish, ask

COLUMNS = 4
"""The plain model's and three personas'."""
SHOWN = 3
"""Columns there are before anybody adds one."""
BLEND = 3
"""Personas of one blend that have a slider each."""
WEIGHT = 0.5
"""Of a persona that joins a blend."""
STRONGEST = 3.0
STEP = 0.1
"""Of a strength slider."""
SCOPES = [
    ("as the server does by itself", ""),
    ("answers", "answers"),
    ("prompt and answers", "all"),
]
QUESTIONS = [
    "A friend invites you to a big party. How do you feel?",
    "How do you feel about meeting new people?",
    "What do you do when a plan falls apart?",
]

Changes = dict[Any, Any]


@dataclass
class Meeting:
    """What one tab has said: a conversation a column, and the last question."""

    conversations: list[Conversation] = field(
        default_factory=lambda: [Conversation() for _ in range(COLUMNS)]
    )
    question: str = ""


class Column:
    """The components of one column; the plain model's has nobody to choose."""

    def __init__(self, number: int) -> None:
        self.number = number
        name = "the plain model" if number == 0 else f"persona {number}"
        with gr.Column(
            min_width=270,
            visible=number < SHOWN,
            elem_classes="palign-column",
            elem_id=f"column-{number}",
        ) as self.box:
            with gr.Column(elem_classes="head", min_width=100):
                if number == 0:
                    gr.HTML(
                        '<h2>Plain model</h2><p class="hint">The same model, nothing added.</p>'
                    )
                else:
                    self.who = gr.Dropdown(
                        [], label=f"Persona {number} (several: a blend)", multiselect=True, max_choices=BLEND,
                        allow_custom_value=True, elem_id=f"who-{number}",
                    )  # fmt: skip
                    self.strength = gr.Slider(
                        -STRONGEST, STRONGEST, 1.0, step=STEP, label="Strength", buttons=[],
                        elem_id=f"strength-{number}",
                    )  # fmt: skip
                    self.weights = [
                        gr.Slider(
                            -1, 1, WEIGHT, step=0.05, label=f"Weight {part + 1}", visible=False, buttons=[],
                            elem_id=f"weight-{number}-{part}",
                        )
                        for part in range(BLEND)
                    ]  # fmt: skip
                    self.weighed = gr.State([])
                    """Whose the weights are."""
                    self.remove = gr.Button("Remove", size="sm", elem_id=f"remove-{number}")
            self.chat = gr.Chatbot(
                label=f"Conversation with {name}", show_label=False, height=380, buttons=["copy"],
                feedback_options=None, latex_delimiters=[], layout="bubble", allow_tags=False,
                placeholder="", elem_id=f"chat-{number}",
                group_consecutive_messages=False, elem_classes="chat",
            )  # fmt: skip
            self.figures = gr.HTML(elem_classes="figures", elem_id=f"figures-{number}")
            with gr.Accordion(
                "As a program", open=False, elem_id=f"program-{number}", elem_classes="program"
            ):
                self.curl = gr.Textbox(
                    label="curl", lines=4, max_lines=8, interactive=False, buttons=["copy"],
                    elem_id=f"curl-{number}", elem_classes="listing",
                )  # fmt: skip
                self.python = gr.Textbox(
                    label="Python", lines=4, max_lines=8, interactive=False, buttons=["copy"],
                    elem_id=f"python-{number}", elem_classes="listing",
                )  # fmt: skip

    @property
    def chosen(self) -> list[Any]:
        """The inputs that make a Wish."""
        return [self.who, self.strength, *self.weights] if self.number else []

    def frame(self, conversation: Conversation) -> Changes:
        """The column as the conversation stands."""
        last = conversation.turns[-1] if conversation.turns else None
        text, style, role = "", "figures", "status"
        if last is not None:
            text = last.figures()
            if last.trouble:
                style, role = "figures trouble", "alert"
        return {
            self.chat: conversation.shown(),
            self.figures: f'<p class="{style}" role="{role}">{escape(text)}</p>' if text else "",
        }


def strongest(persona: Mapping[str, Any]) -> float:
    """Where the strength slider of ``persona``, as the server shows it, ends: the last step that its file allows."""
    most = float((persona.get("fit") or {}).get("max_strength") or STRONGEST)
    steps = math.floor(min(most, STRONGEST) / STEP + 1e-6)
    return round(max(steps, 1) * STEP, 6)


def wish_of(chosen: Sequence[Any], scope: str) -> Wish | None:
    """From a column's inputs; None where nobody is chosen."""
    who, strength, *weights = chosen
    if not who:
        return None
    parts = (
        dict(zip(who, (float(weight or 0) for weight in weights), strict=False))
        if len(who) > 1
        else {who[0]: 1.0}
    )
    return Wish(parts, 1.0 if strength is None else float(strength), scope or None)


class Meet:
    """The view. ``model`` holds the served model's name, ``key`` the tab's API key."""

    def __init__(self, server: Server, key: gr.State, model: gr.State) -> None:
        self._server = server
        self._stops: dict[str, asyncio.Event] = {}
        self._key, self._model = key, model
        self.meeting = gr.State(None)
        self.visible = gr.State([number < SHOWN for number in range(COLUMNS)])
        self.welcome = gr.HTML(elem_id="welcome")
        with gr.Column(elem_id="asking"):
            self.question = gr.Textbox(
                "", label="Your question, to all of them", lines=1, max_lines=6,
                placeholder=QUESTIONS[0], elem_id="question",
            )  # fmt: skip
            with gr.Row(elem_id="ideas"):
                ideas = [
                    gr.Button(
                        text, size="sm", variant="secondary", elem_classes="idea", min_width=150
                    )
                    for text in QUESTIONS
                ]
            with gr.Row(elem_id="actions"):
                wide: dict[str, Any] = {"size": "md", "min_width": 90}
                self.send = gr.Button("Ask", variant="primary", elem_id="ask", **wide)
                self.stop = gr.Button("Stop", interactive=False, elem_id="stop", **wide)
                self.again = gr.Button("Again", elem_id="again", **wide)
                self.clear = gr.Button("New conversation", elem_id="clear", **wide)
                self.add = gr.Button("Add a persona", elem_id="add", **wide)
        with gr.Row(elem_id="columns"):
            self.columns = [Column(number) for number in range(COLUMNS)]
        with gr.Accordion("How they answer (the same for all)", open=False), gr.Row():
            self.scope = gr.Radio(
                SCOPES, value="", label="Scope", info="Which tokens are steered.", min_width=260
            )
            self.max_tokens = gr.Slider(
                16,
                1024,
                120,
                step=8,
                label="Longest answer",
                info="Tokens.",
                buttons=[],
                min_width=200,
                elem_id="longest",
            )
            self.temperature = gr.Slider(
                0, 1.5, 0.7, step=0.1, label="Temperature", info="0: always the likeliest.", buttons=[],
                min_width=200,
            )  # fmt: skip
            self.seed = gr.Number(
                1, label="Seed", info="One for all columns.", precision=0, min_width=160
            )
        self._wire(ideas)

    @property
    def _inputs(self) -> list[Any]:
        chosen = [one for column in self.columns for one in column.chosen]
        sampling = [self.scope, self.max_tokens, self.temperature, self.seed]
        return [
            self.question,
            self._key,
            self._model,
            self.meeting,
            self.visible,
            *sampling,
            *chosen,
        ]

    def _wire(self, ideas: Sequence[gr.Button]) -> None:
        parts = [
            part
            for column in self.columns
            for part in (column.chat, column.figures, column.curl, column.python)
        ]
        outputs = [
            self.question,
            self.meeting,
            self.send,
            self.stop,
            self.again,
            self.clear,
            *parts,
        ]
        answering: dict[str, Any] = {
            "inputs": self._inputs, "outputs": outputs, "show_progress": "hidden",
            "concurrency_limit": None, "api_visibility": "private",
        }  # fmt: skip
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on([self.send.click, self.question.submit], self._ask, **answering)
        self.again.click(self._ask_again, **answering)
        self.stop.click(self._stop, queue=False, **quick)
        self.clear.click(self._clear, outputs=[self.meeting, self.question, *parts], **quick)
        for idea in ideas:
            idea.click(_same, [idea], [self.question], **quick).then(
                None, js="() => document.querySelector('#question textarea').focus()"
            )
        self.add.click(
            self._add,
            [self.visible],
            [self.visible, self.add, *(c.box for c in self.columns)],
            **quick,
        )
        for column in self.columns:
            column.chat.clear(
                self._emptying(column), [self.meeting], [self.meeting, column.figures], **quick
            )
        for column in self.columns[1:]:
            column.who.change(
                _name_weights, [column.who, column.weighed, *column.weights],
                [column.weighed, *column.weights], trigger_mode="always_last", **quick,
            )  # fmt: skip
            column.who.change(
                self._bound, [self._key, column.who, column.strength], [column.strength],
                trigger_mode="always_last", **quick,
            )  # fmt: skip
            column.remove.click(
                self._removing(column), [self.visible, self.meeting],
                [self.visible, self.meeting, self.add, column.box, column.who, column.chat, column.figures],
                **quick,
            )  # fmt: skip

    async def leave(self, request: gr.Request) -> None:
        """The tab was closed: what runs for it ends."""
        await self._stop(request)

    # In the loop, not in one of Gradio's threads: an asyncio.Event is no thread's but its loop's.
    async def _stop(self, request: gr.Request) -> None:
        if stop := self._stops.get(str(request.session_hash)):
            stop.set()

    async def _ask(self, request: gr.Request, *inputs: Any) -> AsyncIterator[Changes]:
        question, meeting = inputs[0].strip(), inputs[3] or Meeting()
        if not question or str(request.session_hash) in self._stops:
            yield {self.question: gr.update(placeholder="Write a question first.")}
            return
        meeting.question = question
        async with aclosing(self._answers(meeting, inputs, request)) as frames:  # type: ignore[type-var]
            async for frame in frames:
                yield frame

    async def _ask_again(self, request: gr.Request, *inputs: Any) -> AsyncIterator[Changes]:
        """The last question once more, with what the sliders say now."""
        meeting: Meeting | None = inputs[3]
        if meeting is None or str(request.session_hash) in self._stops:
            yield {self.question: gr.update(placeholder="Ask something first.")}
            return
        draft = {self.question: inputs[0]}
        async with aclosing(self._answers(meeting, inputs, request, again=True)) as frames:  # type: ignore[type-var]
            async for frame in frames:
                yield {**frame, **draft} if self.question in frame else frame

    async def _answers(
        self, meeting: Meeting, inputs: Sequence[Any], request: gr.Request, *, again: bool = False
    ) -> AsyncIterator[Changes]:
        """``again``: in place of the last answers of those who are asked."""
        _, key, model, _, visible, scope, max_tokens, temperature, seed, *chosen = inputs
        sampling = Sampling(int(max_tokens or 120), float(temperature or 0), int(seed or 0))
        wishes: list[Wish | None] = [Wish()]
        for start in range(0, len(chosen), 2 + BLEND):
            wishes.append(wish_of(chosen[start : start + 2 + BLEND], scope))
        requests, asked = [], []
        first: Changes = {self.question: "", self.meeting: meeting, **self._busy(True)}
        for column, conversation, wish, shown in zip(
            self.columns, meeting.conversations, wishes, visible, strict=True
        ):
            if wish is None or not shown:
                continue
            turns = conversation.turns
            if again and turns and turns[-1].question == meeting.question:
                turns.pop()
            turn = Turn(meeting.question)
            body = conversation.request(model, meeting.question, wish, sampling)
            turns.append(turn)
            requests.append((turn, body))
            asked.append((column, conversation))
            first |= {
                column.curl: snippets.curl(self._server.url, body),
                column.python: snippets.python(self._server.url, body),
            }
        session, stop = str(request.session_hash), asyncio.Event()
        self._stops[session] = stop
        try:
            yield first
            async with aclosing(ask(self._server, key, requests, stop)) as steps:  # type: ignore[type-var]
                async for _ in steps:
                    frame: Changes = {}
                    for column, conversation in asked:
                        frame |= column.frame(conversation)
                    yield frame
        finally:
            del self._stops[session]
        yield self._busy(False)

    async def _bound(self, key: str, who: list[str] | None, strength: float | None) -> Any:
        """A slider ends where the file of its one persona does. What a blend may amount to, the server says."""
        most = STRONGEST
        if who and len(who) == 1:
            with suppress(Trouble):
                most = strongest(await self._server.persona(key, who[0]))
        asked = 1.0 if strength is None else strength
        if abs(asked) <= most:
            return gr.update(minimum=-most, maximum=most)
        return gr.update(minimum=-most, maximum=most, value=math.copysign(most, asked))

    def _busy(self, busy: bool) -> Changes:
        return {
            self.stop: gr.update(interactive=busy),
            **{one: gr.update(interactive=not busy) for one in (self.send, self.again, self.clear)},
        }

    def _clear(self) -> Changes:
        empty: Changes = {self.meeting: None, self.question: ""}
        for column in self.columns:
            empty |= {column.chat: [], column.figures: "", column.curl: "", column.python: ""}
        return empty

    def _add(self, visible: list[bool]) -> Changes:
        place = visible.index(False) if False in visible else None
        if place is None:
            return {self.visible: visible}
        visible[place] = True
        return {
            self.visible: visible,
            self.columns[place].box: gr.update(visible=True),
            self.add: gr.update(interactive=not all(visible)),
        }

    def _removing(self, column: Column) -> Any:
        def remove(visible: list[bool], meeting: Meeting | None, request: gr.Request) -> Any:
            if str(request.session_hash) in self._stops:
                return gr.skip()  # it is answering
            visible[column.number] = False
            if meeting is not None:
                meeting.conversations[column.number] = Conversation()
            return {
                self.visible: visible, self.meeting: meeting, self.add: gr.update(interactive=True),
                column.box: gr.update(visible=False), column.who: [], column.chat: [], column.figures: "",
            }  # fmt: skip

        return remove

    def _emptying(self, column: Column) -> Any:
        def empty(meeting: Meeting | None, request: gr.Request) -> Any:
            if str(request.session_hash) in self._stops:
                return gr.skip()  # what it has said is drawn again with the next word
            if meeting is not None:
                meeting.conversations[column.number] = Conversation()
            return {self.meeting: meeting, column.figures: ""}

        return empty


def _same(text: str) -> str:
    return text


def _name_weights(who: list[str] | None, before: list[str], *weights: float | None) -> list[Any]:
    """A slider for each persona of a blend; whoever stays keeps its weight."""
    who = who or []
    kept = dict(zip(before, weights, strict=False))
    sliders = []
    for part in range(BLEND):
        name = who[part] if part < len(who) else ""
        label = f"Weight of {name}" if name else ""
        update: dict[str, Any] = {"visible": len(who) > 1 and bool(name), "label": label}
        # Where one stays in its place its weight is not written: it may have been moved meanwhile.
        if before[part : part + 1] != [name]:
            update["value"] = kept.get(name, WEIGHT)
        sliders.append(gr.update(**update))
    return [who, *sliders]
