"""How far a run is: bars on a terminal, now and then a plain line where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import typer

EVERY = 30.0
"""Seconds between plain lines; a run that is shorter prints none."""


class PlainLines:
    """Counts finished subjects and says so on stderr."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.fitted = total, 0, 0
        self.began = self.said = monotonic()

    def advance(self, kept: bool) -> None:
        """One subject more; ``kept`` ones took no time and do not count for the rate."""
        self.done += 1
        self.fitted += not kept
        now = monotonic()
        if now - self.said < EVERY or not self.fitted:
            return
        self.said = now
        rate = self.fitted / (now - self.began)
        left = (self.total - self.done) / rate
        typer.echo(
            f"palign-fit: {self.done} of {self.total} subjects, {rate:.3g} a second, {_clock(left)} left",
            err=True,
        )


@contextmanager
def progress(total: int) -> Iterator[tuple[Callable[[int], None], Callable[[bool], None]]]:
    """Two ticks inside the block: texts the model has read, and subjects done (True: were there)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.3g}/s" if task.speed else "")

    console = Console(stderr=True)
    if not console.is_terminal:
        lines = PlainLines(total)
        yield lambda count: None, lines.advance
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        reading = bars.add_task("texts read", total=None)
        fitting = bars.add_task("personas", total=total, start=False)

        def done(kept: bool) -> None:
            bars.start_task(fitting)
            bars.advance(fitting)

        yield lambda count: bars.advance(reading, count), done


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return (
        f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
        if minutes >= 60
        else f"{minutes}:{rest:02d}"
    )
