"""Make: a person from answers, sliders or a file, and what may be expected of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from vllm_palign.errors import PersonaInvalid
from vllm_palign.persona import MAX_FILE_BYTES, Persona, is_persona_id
from vllm_palign.play.client import Server, Trouble
from vllm_palign.play.form import FormError, Questionnaire, Sheet, read_answers
from vllm_palign.play.plots import head_map, radar
from vllm_palign.play.words import TRAITS

ANSWERS, SLIDERS, FILE = "answers", "sliders", "file"
WAYS = [("Answer statements", ANSWERS), ("Set five traits", SLIDERS), ("Take a file", FILE)]
BOUND = 3.0
"""Standard deviations over people, the most that a trait may be set to."""

Changes = dict[Any, Any]


@dataclass
class Given:
    """What a file brought: answers by item, or a persona's ``data``."""

    answers: dict[str, int] | None = None
    data: bytes | None = None


class Make:
    """The view. ``kept`` is a text of the tab that holds its answers. After each of ``enrolled``, events, ``made``
    is the persona that was made, or None."""

    def __init__(self, server: Server, key: gr.State, kept: gr.Textbox) -> None:
        self._server, self._key, self.kept = server, key, kept
        self.known = gr.State(None)
        self.sheet = gr.State(None)
        self.given = gr.State(None)
        self.made = gr.State(None)
        self.taken = gr.State(None)
        """Of what may be replaced, as it was asked about: the key and the name."""
        self.notice = gr.HTML(elem_id="make-notice")
        with gr.Column(visible=False) as self.whole:
            self.way = gr.Radio(WAYS, value=ANSWERS, label="How", elem_id="way")
            with gr.Row(elem_id="make-row"):
                with gr.Column(scale=3, min_width=300):
                    with gr.Column(elem_id="by-answers") as self.by_answers:
                        self.length = gr.Radio([], label="How many statements", elem_id="length")
                        self.statement = gr.HTML(elem_id="statement")
                        with gr.Row(elem_id="scale"):
                            self.scale = [
                                gr.Button(
                                    str(value), elem_id=f"answer-{value}", min_width=92, size="md"
                                )
                                for value in range(1, 6)
                            ]
                        with gr.Row():
                            self.back = gr.Button("Back", size="sm", elem_id="back", min_width=90)
                            self.skip = gr.Button("Skip", size="sm", elem_id="skip", min_width=90)
                            self.restart = gr.Button(
                                "Begin again", size="sm", elem_id="restart", min_width=90
                            )
                        with gr.Row(visible=False, elem_id="restart-sure") as self.sure:
                            gr.HTML(_said("All answers of this tab are forgotten then."))
                            self.forget = gr.Button(
                                "Yes, forget them", size="sm", variant="stop", elem_id="forget"
                            )
                            self.stay = gr.Button("No, go on", size="sm", elem_id="stay")
                    with gr.Column(visible=False, elem_id="by-sliders") as self.by_sliders:
                        gr.HTML(
                            '<p class="hint">0 is the average person; 1 is further than five of six people.</p>'
                        )
                        self.traits = [
                            gr.Slider(
                                -BOUND,
                                BOUND,
                                0,
                                step=0.1,
                                label=name,
                                buttons=[],
                                elem_id=f"trait-{letter}",
                            )
                            for letter, name in TRAITS.items()
                        ]
                    with gr.Column(visible=False, elem_id="by-file") as self.by_file:
                        self.file = gr.File(
                            label="Answers (JSON, CSV) or a persona (.safetensors)",
                            file_types=[".json", ".csv", ".safetensors"], height=130, elem_id="file",
                        )  # fmt: skip
                        self.read = gr.HTML(elem_id="file-read")
                with gr.Column(scale=2, min_width=280):
                    self.radar = gr.HTML(elem_id="radar")
            with gr.Row(elem_id="name-row"):
                self.name = gr.Textbox(
                    "", label="Name", placeholder="nina", info="Letters, digits, . _ -", max_length=128,
                    scale=2, elem_id="name",
                )  # fmt: skip
                self.description = gr.Textbox(
                    "",
                    label="Description",
                    info="May be left empty.",
                    max_length=500,
                    scale=3,
                    elem_id="description",
                )
            self.make = gr.Button("Make", variant="primary", elem_id="make")
            self.told = gr.HTML(elem_id="make-told")
            self.replace = gr.Button(
                "Replace it", variant="stop", visible=False, elem_id="replace-made"
            )
        self._wire()

    async def ready(self, key: str, kept: str, sheet: Sheet | None) -> Changes:
        """The view as far as server and key allow; says at once what they do not."""
        notice, questionnaire = "", None
        try:
            await self._server.may_make(key)
        except Trouble as trouble:
            notice = _said(trouble.sentence, "trouble")
            return {self.notice: notice, self.whole: gr.update(visible=False), self.known: None}
        try:
            questionnaire = Questionnaire.of(await self._server.questionnaire(key))
        except Trouble as trouble:
            notice = _said(trouble.sentence, "trouble")
        except FormError as error:
            notice = _said(str(error), "trouble")
        made_here = questionnaire is not None
        changes: Changes = {
            self.notice: notice,
            self.whole: gr.update(visible=True),
            self.known: questionnaire,
            # Where everything is offered the way stays: somebody may be choosing another meanwhile.
            self.way: gr.update(choices=WAYS)
            if made_here
            else gr.update(choices=WAYS[2:], value=FILE),
        }
        if questionnaire is None:
            return {**changes, **self._ways(FILE), self.radar: ""}
        lengths = [value for _, value in questionnaire.lengths]
        if sheet is not None and sheet.length in lengths:
            # It stays where it is: somebody may be answering meanwhile.
            return changes
        sheet = sheet or Sheet.from_text(kept, questionnaire)
        if sheet.length not in lengths:
            sheet = Sheet(lengths[0], 0, sheet.answers)
        return {
            **changes,
            self.sheet: sheet,
            self.length: gr.update(choices=questionnaire.lengths, value=sheet.length),
        }

    @property
    def outputs(self) -> list[Any]:
        """All that ``ready`` may change."""
        return [
            self.notice, self.whole, self.known, self.way, *self._rooms, self.radar, self.length, self.sheet
        ]  # fmt: skip

    @property
    def _rooms(self) -> list[Any]:
        return [self.by_answers, self.by_sliders, self.by_file]

    def _wire(self) -> None:
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        # One after the other and none left out: whoever taps quickly is not answered for twice or not at all.
        tapped: dict[str, Any] = {
            "inputs": [self.known, self.sheet], "outputs": self.sheet,
            "trigger_mode": "multiple", "concurrency_id": "tap", "concurrency_limit": 1, **quick,
        }  # fmt: skip
        for value, button in enumerate(self.scale, start=1):
            button.click(self._tapping(_answering(value)), **tapped)
        self.back.click(self._tapping(lambda sheet, form: sheet.move(form, -1)), **tapped)
        self.skip.click(self._tapping(lambda sheet, form: sheet.move(form, 1)), **tapped)
        self.forget.click(self._tapping(lambda sheet, form: Sheet(sheet.length)), **tapped)
        self.restart.click(lambda: gr.update(visible=True), None, self.sure, **quick)
        gr.on(
            [self.forget.click, self.stay.click],
            lambda: gr.update(visible=False), None, self.sure, **quick,
        )  # fmt: skip
        self.length.input(
            self._resize, [self.length, self.known, self.sheet], self.sheet,
            trigger_mode="always_last", concurrency_id="tap", **quick,
        )  # fmt: skip
        # Replies to quick taps may overtake one another on their way. What is shown is asked for one at a time, and
        # once more where there was another tap meanwhile.
        gr.on(
            [self.known.change, self.sheet.change], self._asked, [self.known, self.sheet, self.way],
            [self.kept, self.statement, *self.scale, self.radar], trigger_mode="always_last", **quick,
        )  # fmt: skip
        self.way.input(
            self._choose_way, [self.way, self.known, self.sheet, self.given, *self.traits],
            [*self._rooms, self.radar, self.told, self.replace, self.description],
            trigger_mode="always_last", **quick,
        )  # fmt: skip
        for trait in self.traits:
            trait.change(_of_sliders, self.traits, self.radar, trigger_mode="always_last", **quick)
        self.file.change(
            self._take,
            [self.file, self.known, self.name],
            [self.given, self.read, self.radar, self.name, self.description],
            **quick,
        )
        person = [
            self._key,
            self.taken,
            self.name,
            self.description,
            self.way,
            self.known,
            self.sheet,
            self.given,
            *self.traits,
        ]
        done = [self.told, self.replace, self.taken, self.made]
        asking: dict[str, Any] = {"inputs": person, "outputs": done, "api_visibility": "private"}
        self.enrolled = [
            button.click(enrol, show_progress_on=self.told, **asking)
            for button, enrol in ((self.make, self._make), (self.replace, self._make_again))
        ]

    def _tapping(self, change: Callable[[Sheet, Sequence[str]], Sheet]) -> Callable[..., Sheet]:
        def tap(known: Questionnaire | None, sheet: Sheet) -> Sheet:
            return change(sheet, known.form(sheet.length)) if known else sheet

        return tap

    def _resize(self, length: str, known: Questionnaire, sheet: Sheet) -> Sheet:
        return sheet.resize(length, known.form(length))

    def _asked(self, known: Questionnaire | None, sheet: Sheet | None, way: str) -> Any:
        """The statement that is next, how far one is, the person so far."""
        if known is None or sheet is None:
            return gr.skip()
        form = known.form(sheet.length)
        open_ = sheet.at < len(form)
        before = sheet.answers.get(form[sheet.at]) if open_ else None
        return {
            self.kept: sheet.to_text(),
            self.statement: _statement(known, sheet, form),
            **({self.radar: _of_answers(known, sheet.given(form), form)} if way == ANSWERS else {}),
            **{
                button: gr.update(
                    value=f"{value} {known.scale.get(str(value), '')}".strip(),
                    interactive=open_,
                    variant="primary" if value == before else "secondary",
                )
                for value, button in enumerate(self.scale, start=1)
            },
        }

    def _ways(self, way: str) -> Changes:
        return {
            room: gr.update(visible=way == name)
            for room, name in zip(self._rooms, (ANSWERS, SLIDERS, FILE), strict=True)
        }

    def _choose_way(
        self,
        way: str,
        known: Questionnaire | None,
        sheet: Sheet,
        given: Given | None,
        *traits: float,
    ) -> Changes:
        drawn = ""
        if way == SLIDERS:
            drawn = _of_sliders(*traits)
        elif known and way == ANSWERS:
            form = known.form(sheet.length)
            drawn = _of_answers(known, sheet.given(form), form)
        elif way == FILE:
            drawn = _of_given(given, known)
        return {
            **self._ways(way), self.radar: drawn, self.told: "", self.replace: gr.update(visible=False),
            self.description: _describing(given if way == FILE else None),
        }  # fmt: skip

    def _take(self, path: str | None, known: Questionnaire | None, name: str) -> Changes:
        """Look at the file before anything is sent."""
        if path is None:
            return {
                self.given: None, self.read: "", self.radar: "", self.description: _describing(None)
            }  # fmt: skip
        try:
            inside, given, text = _read(Path(path), known)
        except (FormError, PersonaInvalid, OSError) as error:
            return {self.given: None, self.read: _said(str(error), "trouble"), self.radar: ""}
        finally:
            # Somebody's answers: no longer on the disk than it takes to read them.
            Path(path).unlink(missing_ok=True)
        changes: Changes = {
            self.given: given,
            self.read: _said(text),
            self.radar: _of_given(given, known),
            self.description: _describing(given),
        }
        if not name and is_persona_id(inside):
            changes[self.name] = inside
        return changes

    async def _make(self, *inputs: Any) -> Changes:
        return await self._enrol(False, *inputs)

    async def _make_again(self, *inputs: Any) -> Changes:
        return await self._enrol(True, *inputs)

    async def _enrol(
        self, again: bool, key: str, taken: tuple[str, str] | None, name: str, description: str, way: str,
        known: Questionnaire | None, sheet: Sheet, given: Given | None, *traits: float,
    ) -> Changes:  # fmt: skip
        name = name.strip()
        if not is_persona_id(name):
            return self._answer(
                "Give it a name: 1 to 128 letters (a to z), digits, or . _ -, beginning with a letter or digit."
            )
        person = _person(way, known, sheet, given, traits)
        if isinstance(person, str):
            return self._answer(person)
        # Only what was asked about: the name may be another by now.
        replace = again and (key, name) == taken
        try:
            if isinstance(person, bytes):
                persona = await self._server.put(key, name, person, replace=replace)
            else:
                if description.strip():
                    person["description"] = description.strip()
                persona = await self._server.make(key, name, person, replace=replace)
        except Trouble as trouble:
            if trouble.code == "persona_exists" and not replace:
                return {
                    **self._answer(
                        f"There is another {name} already. Replace it, or take another name."
                    ),
                    self.replace: gr.update(visible=True),
                    self.taken: (key, name),
                }
            return self._answer(trouble.sentence)
        return {self.told: "", self.replace: gr.update(visible=False), self.made: persona}

    def _answer(self, trouble: str) -> Changes:
        return {
            self.told: _said(trouble, "trouble"), self.replace: gr.update(visible=False), self.made: None
        }  # fmt: skip


def _person(
    way: str,
    known: Questionnaire | None,
    sheet: Sheet,
    given: Given | None,
    traits: Sequence[float],
) -> dict[str, Any] | bytes | str:
    """The body to send, a file's bytes, or what is missing."""
    if way == SLIDERS:
        values = {
            label.lower(): round(float(value), 2)
            for label, value in zip(TRAITS.values(), traits, strict=True)
            if value
        }
        return (
            {"traits": values}
            if values
            else "All five traits are those of the average person. Move one."
        )
    if way == FILE:
        if given is None:
            return "Take a file first."
        return {"answers": given.answers} if given.data is None else given.data
    answers = sheet.given(known.form(sheet.length)) if known else {}
    return {"answers": answers} if answers else "Answer some statements first."


def _read(path: Path, known: Questionnaire | None) -> tuple[str, Given, str]:
    """(name inside, what the file brings, what to say of it). Raises FormError, PersonaInvalid, OSError."""
    if path.stat().st_size > MAX_FILE_BYTES:
        raise FormError("The file is larger than 16 MiB, the most that a persona file may be.")
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        persona = Persona.from_bytes(data, source=path.name)
        text = f"A persona file of {persona.name}, {len(persona.layers)} steered heads, for {persona.base_model}."
        return persona.name, Given(data=data), text
    if known is None:
        raise FormError(
            "This server makes no personas from answers; wanted a persona file (.safetensors)."
        )
    name, answers = read_answers(data, known)
    text = f"{len(answers)} answers{f' of {name}' if name else ''}."
    return name or path.stem, Given(answers=answers), text


def _answering(value: int) -> Callable[[Sheet, Sequence[str]], Sheet]:
    return lambda sheet, form: sheet.answer(form, value)


def _statement(known: Questionnaire, sheet: Sheet, form: Sequence[str]) -> str:
    done = len(sheet.given(form))
    bar = (
        f'<progress max="{len(form)}" value="{done}" aria-label="answered">{done}</progress>'
        f'<p class="hint">{done} of {len(form)} answered · keys 1 to 5 answer, too</p>'
    )
    if sheet.at >= len(form):
        text = (
            "That was all. Give it a name and make it."
            if done
            else "Nothing is answered yet: go back."
        )
        return f'<div aria-live="polite"><p class="statement">{text}</p></div>{bar}'
    text = escape(known.items[form[sheet.at]]["text"].rstrip("."))
    return (
        f'<div aria-live="polite"><p class="hint">How well does this describe the person?</p>'
        f'<p class="statement">“I {text}.”</p></div>{bar}'
    )


def _of_answers(known: Questionnaire, answers: Mapping[str, float], form: Sequence[str]) -> str:
    return radar(known.profile(answers, form), known.profile(known.usual, form), 1, 5)


def _of_sliders(*traits: float) -> str:
    return radar(dict(zip(TRAITS, traits, strict=True)), dict.fromkeys(TRAITS, 0.0), -BOUND, BOUND)


def _of_given(given: Given | None, known: Questionnaire | None) -> str:
    if given is None:
        return ""
    if given.data is not None:
        return head_map(Persona.from_bytes(given.data))
    if given.answers and known:
        return _of_answers(known, given.answers, list(known.items))
    return ""


def _describing(given: Given | None) -> Any:
    """The field for a description: a persona's file has one of its own."""
    whole = given is not None and given.data is not None
    if whole:
        return gr.update(interactive=False, info="The file has its own.", value="")
    return gr.update(interactive=True, info="May be left empty.")


def _said(text: str, style: str = "said") -> str:
    role = "alert" if style == "trouble" else "status"
    return f'<p class="{style}" role="{role}">{escape(text)}</p>'
