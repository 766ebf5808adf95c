"""palign-fit ask: the questionnaire put to a person in the terminal."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from palign_fit.commands import options
from palign_fit.commands.common import check_file, inventory_of, with_exit_codes
from palign_fit.errors import InputError
from palign_fit.inputs.answers import read_answers
from palign_fit.inputs.files import write_text
from palign_fit.inputs.sitting import KEYS, Sitting, spread
from vllm_palign.directions import load_directions
from vllm_palign.directions.inventory import SCALE, Inventory, Item
from vllm_palign.directions.scores import MIN_ANSWERED
from vllm_palign.persona import is_persona_id


class Form(StrEnum):
    ten = "10"
    thirty = "30"
    sixty = "60"
    whole = "all"


@with_exit_codes
def ask(
    out: Annotated[
        Path,
        typer.Option("--out", help="Answers file to write, NAME.json; one that is there goes on."),
    ],
    form: Annotated[Form, typer.Option("--form", help="How many statements.")] = Form.thirty,
    inventory: options.Inventory = None,
    directions: Annotated[
        Path | None,
        typer.Option(
            "--directions",
            help="What palign-fit directions wrote: asks its model's most telling items.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--id", help="Who answers; default: the file's, or the name of --out."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Put the questionnaire to a person: 1 to 5, s skips, b goes back, q quits and keeps the answers.

    Started again with the same --out, it goes on with what has no answer yet.
    No model is opened. Answers may also come line by line from a pipe; what is
    no answer then ends the run, and nothing is written.
    """
    if inventory is not None and directions is not None:
        raise InputError("--inventory: not beside --directions, which hold theirs; leave one out")
    check_file("--out", out)
    if out.suffix.lower() != ".json":
        raise InputError(f"--out {out}: answers are written as JSON, wanted a name ending in .json")
    known = load_directions(directions) if directions is not None else None
    items = known.inventory if known is not None else inventory_of(inventory)
    person, answers = _begun(out, items, name)
    telling = None if known is None else [items.items[place] for place in known.order]
    sitting = Sitting(_asked(form, items, telling), answers)
    at_terminal = sys.stdin.isatty()

    kept = dict(answers)

    def keep() -> None:
        if answers != kept:
            ordered = {item.id: answers[item.id] for item in items.items if item.id in answers}
            write_text(out, json.dumps({"id": person, "answers": ordered}, indent=1) + "\n")
            kept.clear()
            kept.update(answers)

    _say(f"How well does each statement describe {person}? {KEYS}.")
    _say("   ".join(f"{value} {label}" for value, label in SCALE.items()))
    try:
        for number, said in enumerate(_lines(sitting, at_terminal), 1):
            wrong = sitting.take(said)
            if wrong is not None and not at_terminal:
                # Whatever follows would answer other statements than it was meant for.
                raise InputError(f"standard input, line {number}: {wrong}; nothing was written")
            if wrong is not None:
                _say(wrong)
            elif at_terminal:
                keep()  # a terminal may be closed at any moment
    except KeyboardInterrupt:
        _say("")
    keep()
    _tell(out, person, sitting, directions, inventory, as_json)


def _begun(out: Path, inventory: Inventory, name: str | None) -> tuple[str, dict[str, int]]:
    """Who answers, and the answers that ``out`` holds already. Raises InputError."""
    if not out.exists():
        person = out.stem if name is None else name
        if not is_persona_id(person):
            raise InputError(
                f"--id {person[:40]!r}: wanted text like [A-Za-z0-9][A-Za-z0-9._-]{{0,127}}; without it the "
                "name of --out is taken"
            )
        return person, {}
    people = read_answers(out, inventory)
    if len(people) != 1:
        raise InputError(f"--out {out}: holds {len(people)} people, wanted one to go on with")
    if name not in (None, people.ids[0]):
        raise InputError(
            f"--id {str(name)[:40]!r}: {out} holds answers of {people.ids[0]!r}; give another --out"
        )
    given = zip(inventory.items, people.table[0].tolist(), strict=True)
    return people.ids[0], {item.id: value for item, value in given if value}


def _asked(form: Form, inventory: Inventory, telling: list[Item] | None) -> list[Item]:
    """The items of ``form``, in the order they are asked."""
    if form is Form.whole:
        return list(inventory.items)
    count = int(form.value)
    return spread(inventory, count) if telling is None else telling[:count]


def _lines(sitting: Sitting, at_terminal: bool) -> Iterator[str]:
    """What is typed after each prompt, until all is asked, "q", or the end of the input. Raises InputError."""
    while not sitting.done:
        _say(sitting.prompt, end="")
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise InputError(
                f"standard input: is not text ({error.reason}); wanted {KEYS}"
            ) from error
        said = line.strip().lower()
        if not (at_terminal and line):
            _say("")  # a terminal has shown the end of the line itself
        if said == "q" or not line:
            return
        yield said


def _tell(
    out: Path,
    person: str,
    sitting: Sitting,
    directions: Path | None,
    inventory: Path | None,
    as_json: bool,
) -> None:
    """How far it came, and the next command."""
    count, asked = len(sitting.answers), len(sitting.form)
    source: list[str | Path] = (
        ["--model", "MODEL"] if directions is None else ["--directions", directions]
    )
    source += [] if inventory is None else ["--inventory", inventory]
    run = ["palign-fit", "run", *source, "--answers", out, "--out", "personas/"]
    following = shlex.join(map(str, run)) if count >= MIN_ANSWERED else ""
    if as_json:
        told = {"id": person, "path": str(out), "answered": count, "asked": asked}
        print(json.dumps(told | {"left": asked - sitting.answered, "next": following}))
        return
    print(
        f"{out}: {sitting.answered} of {asked} statements answered"
        if out.exists()
        else "nothing was answered"
    )
    if sitting.answered < asked:
        print("The same command goes on with the others.")
    if following:
        print(f"Next: {following}")
    elif out.exists():
        print(f"A persona takes at least {MIN_ANSWERED} answers; {count} are there.")


def _say(text: str, *, end: str = "\n") -> None:
    """On stderr, where no program reads."""
    typer.echo(f"{text}{end}", nl=False, err=True)
