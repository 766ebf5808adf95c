"""How far a long run is: bars on a terminal, now and then a plain line where there is none.

Whoever computes opens a stage by its name and ticks: ``with progress("texts read", 1260) as tick: tick(32)``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Event, RLock, Thread
from time import monotonic
from typing import Protocol

import typer

EVERY = 30.0
"""Seconds to the first plain line, and between two; a run that is shorter prints none."""

_REST, _SETTLE = 5.0, 2.0
"""Results may come a batch at once: after a rest of so many seconds the pace is told so much later, and that
of a new stage as well."""


class Tick(Protocol):
    """``count`` more are done; ``free`` ones were there already and say nothing of the pace."""

    def __call__(self, count: int, /, *, free: bool = False) -> None: ...


Progress = Callable[[str, int | None], AbstractContextManager[Tick]]
"""Opens a stage of that name and length (None: nobody knows). A stage within a stage stops its clock."""


def no_tick(count: int, /, *, free: bool = False) -> None:
    """Nobody listens."""


def no_progress(name: str, total: int | None) -> AbstractContextManager[Tick]:
    return nullcontext(no_tick)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Show on stderr what the block does."""
    with _bars() if sys.stderr.isatty() else _lines() as progress:
        yield progress


class Stage:
    """What one stage has done since ``began``; ``paced`` of it took time."""

    def __init__(self, name: str, total: int | None, now: float) -> None:
        self.name, self.total = name, total
        self.done = self.paced = 0
        self.began = self.ticked = self.woke = now

    def tick(self, count: int, now: float, *, free: bool) -> None:
        self.done += count
        self.paced += 0 if free else count
        if now - self.ticked > _REST:
            self.woke = now
        self.ticked = now

    def settled(self, now: float) -> bool:
        """Whether what has ticked may be all that was done, and is not the first of a batch."""
        return now - self.woke >= _SETTLE

    def line(self, now: float) -> str:
        """``personas: 160 of 1000 (16 %), 2 a second, 7:00 left``, as much of it as is known."""
        spent = now - self.began
        if self.total is None:
            return f"{self.name}: {f'{self.done} in ' if self.done else ''}{_clock(spent)} so far"
        text = (
            f"{self.name}: {self.done} of {self.total} ({100 * self.done // max(self.total, 1)} %)"
        )
        if not self.paced or spent <= 0:
            return f"{text}, {_clock(spent)} so far"
        each = spent / self.paced
        pace = f"{1 / each:.3g} a second" if each <= 1 else f"{each:.3g} s each"
        return f"{text}, {pace}, {_clock((self.total - self.done) * each)} left"


class PlainLines:
    """The stages that are open, the innermost last, and when something was said of them."""

    def __init__(self) -> None:
        self._open: list[Stage] = []
        self._due = monotonic() + EVERY
        # Ticks come from the run, lines from a clock beside it.
        self._lock = RLock()

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Tick]:
        own = Stage(name, total, monotonic())

        def tick(count: int, /, *, free: bool = False) -> None:
            with self._lock:
                own.tick(count, monotonic(), free=free)

        with self._lock:
            self._open.append(own)
        try:
            yield tick
        finally:
            with self._lock:
                self._open.remove(own)
                for outer in self._open:
                    outer.began += monotonic() - own.began

    def say(self) -> None:
        """One line of the innermost stage, if it is time for one."""
        with self._lock:
            now = monotonic()
            if now < self._due or not self._open or not self._open[-1].settled(now):
                return
            self._due = now + EVERY
            text = self._open[-1].line(now)
        typer.echo(f"palign-fit: {text}", err=True)


@contextmanager
def _lines() -> Iterator[Progress]:
    lines, over = PlainLines(), Event()

    def watch() -> None:
        while not over.wait(1.0):
            lines.say()

    clock = Thread(target=watch, name="palign-fit progress", daemon=True)
    clock.start()
    try:
        yield lines.stage
    finally:
        over.set()
        clock.join()


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.3g}/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:

        @contextmanager
        def stage(name: str, total: int | None) -> Iterator[Tick]:
            bar = bars.add_task(name, total=total)

            def tick(count: int, /, *, free: bool = False) -> None:
                bars.advance(bar, count)

            yield tick
            if total is None:
                bars.stop_task(bar)

        yield stage


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
