"""JSON objects, a list of them, or one a line (JSONL), decoded one by one through a small window."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TextIO

from palign_fit.errors import InputError
from palign_fit.inputs.rows import Row
from vllm_palign.container import STRICT_JSON

WINDOW = 1 << 20
MAX_RECORD = 4 * WINDOW
"""Most characters of one record: thousands of items with long names take a tenth of it."""

_SPACE = re.compile(r"[ \t\r\n]*")


def json_records(text: TextIO, source: str) -> Iterator[Row]:
    """Records of a JSON list, of JSONL, or the only one. Raises InputError where it is no JSON."""
    window = _Window(text, source)
    if window.peek() == "[":
        yield from _listed(window)
        return
    while window.peek():
        line = window.line
        yield Row(f"line {line}", window.value())
        if window.peek() and window.line == line:
            raise window.broken("more text after an object, wanted a new line")


def _listed(window: _Window) -> Iterator[Row]:
    window.step()
    place = 0
    if window.peek() != "]":
        while True:
            place += 1
            yield Row(f"subject {place}", window.value())
            mark = window.peek()
            if mark != ",":
                break
            window.step()
            window.peek()
        if mark != "]":
            raise window.broken(
                "wanted a comma or the list's end" if mark else "the list has no end"
            )
    window.step()
    if window.peek():
        raise window.broken("more text after the list")


class _Window:
    """The part of a text that is being decoded; what is behind is forgotten."""

    def __init__(self, text: TextIO, source: str) -> None:
        self.text, self.source = text, source
        self.held, self.place, self.line, self.ended = "", 0, 1, False

    def peek(self) -> str:
        """The next character that is no white space, "" at the end."""
        while True:
            space = _SPACE.match(self.held, self.place)
            assert space is not None
            self._go(space.end())
            if self.place < len(self.held) or self.ended:
                return self.held[self.place : self.place + 1]
            self._more()

    def step(self) -> None:
        self._go(self.place + 1)

    def value(self) -> object:
        """The JSON value that starts here."""
        while True:
            try:
                value, end = STRICT_JSON.raw_decode(self.held, self.place)
                # A number at the window's edge may go on.
                if end < len(self.held) or self.ended:
                    self._go(end)
                    return value
            except json.JSONDecodeError as error:
                if self.ended:
                    raise self.broken(error.msg) from error
            except RecursionError as error:
                raise InputError(f"{self._where}: is nested too deeply to be read") from error
            except ValueError as error:
                raise self.broken(str(error)) from error
            if len(self.held) - self.place > MAX_RECORD:
                raise self.broken(f"no whole record within {MAX_RECORD} characters")
            self._more()

    def broken(self, what: str) -> InputError:
        return InputError(f"{self._where}: is not valid JSON: {what}")

    @property
    def _where(self) -> str:
        return f"{self.source}: line {self.line}"

    def _go(self, place: int) -> None:
        self.line += self.held.count("\n", self.place, place)
        self.place = place

    def _more(self) -> None:
        chunk = self.text.read(WINDOW)
        self.held = self.held[self.place :] + chunk
        self.place, self.ended = 0, not chunk
