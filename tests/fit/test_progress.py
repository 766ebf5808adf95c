"""What a long run says of itself where nobody sees a bar; `say` is what the clock beside the run calls."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from palign_fit import progress
from palign_fit.progress import EVERY, PlainLines, show_progress


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be turned on."""
    time = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: time[0])
    return time


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    return lambda: capsys.readouterr().err.splitlines()


def test_a_long_run_says_stage_share_pace_and_time_left(
    now: list[float], said: Callable[[], list[str]]
) -> None:
    lines = PlainLines()
    with lines.stage("personas", 1000) as done:
        for place in range(600):
            now[0] += 0 if place < 100 else 0.5
            done(1, free=place < 100)
            lines.say()
    told = said()
    assert told[0] == "palign-fit: personas: 160 of 1000 (16 %), 2 a second, 7:00 left"
    assert len(told) == 250 // EVERY


def test_a_run_that_is_short_says_nothing(now: list[float], said: Callable[[], list[str]]) -> None:
    lines = PlainLines()
    with lines.stage("personas", 10) as done:
        for _ in range(10):
            now[0] += 2.9
            done(1)
            lines.say()
    assert said() == []


def test_a_stage_that_has_not_ticked_yet_says_since_when_it_runs(
    now: list[float], said: Callable[[], list[str]]
) -> None:
    lines = PlainLines()
    with lines.stage("opening Qwen/Qwen2.5-1.5B-Instruct", None):
        now[0] = 45
        lines.say()
    with lines.stage("personas", 10):
        now[0] = 90
        lines.say()
    assert said() == [
        "palign-fit: opening Qwen/Qwen2.5-1.5B-Instruct: 0:45 so far",
        "palign-fit: personas: 0 of 10 (0 %), 0:45 so far",
    ]


def test_a_stage_within_another_is_told_and_does_not_slow_its_pace(
    now: list[float], said: Callable[[], list[str]]
) -> None:
    lines = PlainLines()
    with lines.stage("personas", 10) as done:
        with lines.stage("texts read", None) as read:
            now[0] = 1800
            read(1260)
            now[0] += 3
            lines.say()
        now[0] += 40
        done(2)
        now[0] += 3
        lines.say()
    assert said() == [
        "palign-fit: texts read: 1260 in 30:03 so far",
        "palign-fit: personas: 2 of 10 (20 %), 21.5 s each, 2:52 left",
    ]


def test_results_that_come_a_batch_at_once_are_never_told_after_the_first_of_them(
    now: list[float], said: Callable[[], list[str]]
) -> None:
    """ "1 of 10 subjects, 0.000549 a second, 4:33:00 left" was said when all ten were computed."""
    lines = PlainLines()
    with lines.stage("personas", 20) as done:
        now[0] = 1820
        for _ in range(10):
            done(1)
            now[0] += 0.1
            lines.say()
        assert said() == []
        now[0] += 1.5
        lines.say()
    assert said() == ["palign-fit: personas: 10 of 20 (50 %), 182 s each, 30:22 left"]


def test_without_a_terminal_a_clock_beside_the_run_says_it(
    monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.5)
    monkeypatch.setattr(progress, "_SETTLE", 0.0)
    with show_progress() as opened, opened("opening a model", None):
        # The run itself computes and does not tick: somebody else has to speak, once it gets to run.
        for _ in range(600):
            told = said()
            if told:
                break
            progress.Event().wait(0.1)
    (line,) = told
    assert re.fullmatch(r"palign-fit: opening a model: \d:\d\d so far", line)
