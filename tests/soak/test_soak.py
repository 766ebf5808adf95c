"""A minute, and as much more as it takes to see everything, of what ``make soak`` does for an hour."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import psutil
import pytest

from tests.conftest import ROOT, TINY
from tests.detokenizer import Detokenizer
from tests.oracle import table
from tests.personas import random_persona
from tests.soak.asking import _check
from tests.soak.judge import Judge
from tests.soak.names import Names
from tests.soak.questions import Answer, Piece, Prompt, Question, _add_event, _whole
from tests.soak.report import MIB, MOST_GROWTH, result
from tests.soak.servers import Sample, own_memory
from tests.soak.tally import Lost, Tally, Wrong
from tests.soak.wishes import Wish
from vllm_palign import Persona


def test_a_minute_or_two_of_everything_at_once_leave_nothing_wrong(demo_model: Path) -> None:
    """Every answer is the reference's, whatever was put, replaced, removed, broken off, attacked, revoked and
    killed meanwhile; and the server's memory stays flat."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.soak", "--minutes", "1", "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=900)
        finally:
            process.terminate()
    print(err)
    assert process.returncode == 0, err[-6000:]
    result = json.loads(out)
    assert result["wrong"] == []
    assert result["kills"] == ["engine"]
    assert result["missing"] == []


def test_an_answer_of_tokens_without_text_is_an_answer_with_nothing_shown() -> None:
    """vLLM leaves such an answer's ``content`` empty."""
    usage = SimpleNamespace(output_tokens=7)
    for output in ([], [SimpleNamespace(content=[])]):
        answer = Answer(None)
        _whole(answer, "responses", SimpleNamespace(output=output, usage=usage))
        assert (answer.choices, answer.generated) == ({0: []}, 7)


def test_a_response_s_last_event_holds_what_its_deltas_held() -> None:
    def shown(text: str, *tokens: int) -> SimpleNamespace:
        entries = [SimpleNamespace(token=f"token_id:{token}", logprob=-0.5) for token in tokens]
        return SimpleNamespace(
            type="response.output_text.delta", delta=text, text=text, logprobs=entries
        )

    def last(*parts: SimpleNamespace) -> SimpleNamespace:
        output = [SimpleNamespace(content=parts)] if parts else []
        response = SimpleNamespace(output=output, usage=SimpleNamespace(output_tokens=9))
        return SimpleNamespace(type="response.completed", response=response)

    deltas = [shown("a", 1), shown("bc", 2, 3)]
    answer = Answer(None)
    assert [_add_event(answer, event) for event in [*deltas, last(shown("abc", 1, 2, 3))]] == [
        0,
        0,
        1,
    ]
    assert answer.choices == {0: [Piece([(1, -0.5)], "a"), Piece([(2, -0.5), (3, -0.5)], "bc")]}
    assert answer.generated == 9
    for wrong in (last(), last(shown("ab", 1, 2, 3)), last(shown("abc", 1, 3, 2)), last(deltas[0])):
        with pytest.raises(Wrong, match="the last event"):
            _add_event(answer, wrong)
    nothing = Answer(None)
    assert _add_event(nothing, last())
    assert nothing.choices == {0: []}


@pytest.mark.parametrize(
    ("endpoint", "stream", "left", "shown", "judged"),
    [
        ("responses", True, False, 2, "check_with_gaps"),
        ("responses", True, True, 2, "check_with_gaps"),
        ("responses", False, False, 0, "check_with_gaps"),
        ("responses", True, False, 3, "check"),
        ("chat", True, True, 2, "check"),
        ("completions", False, False, 3, "check"),
        ("responses", False, False, 2, "Lost"),
        ("chat", True, False, 2, "Lost"),
        ("completions", False, False, 0, "Lost"),
    ],
)
def test_tokens_are_left_out_by_streamed_responses_and_by_responses_without_any_text(
    endpoint: str, stream: bool, left: bool, shown: int, judged: str
) -> None:
    judge = AsyncMock(**{"check_with_gaps.return_value": 3 - shown})
    world: Any = SimpleNamespace(judge=judge, tally=Tally())
    asked = Question(Prompt(endpoint, "", [1]), tokens=3, stream=stream)
    pieces = [Piece([(7, -0.5)], "a")] * shown
    try:
        asyncio.run(_check(world, asked, left, pieces, []))
        (call,) = judge.method_calls
        assert call[0] == judged
    except Lost:
        assert judged == "Lost" and not judge.method_calls


def test_a_token_without_a_log_probability_is_not_taken_for_one_left_out() -> None:
    with pytest.raises(TypeError):
        Answer(None).add(0, [("token_id:1", None)], "a")


def test_the_judge_sees_that_nothing_is_shown_of_an_answer_that_has_text(tiny_model: Path) -> None:
    judge = Judge(tiny_model, Tally())
    with pytest.raises(Wrong, match="nothing is shown"):
        asyncio.run(judge.check_with_gaps([11, 222, 3333, 44], [], [], 12))


def persona(seed: int) -> Persona:
    return random_persona(seed, **TINY, steered=6, scale=0.5)


def test_the_judge_sees_another_persona_another_strength_and_another_token(
    tiny_model: Path,
) -> None:
    judge, prompt = Judge(tiny_model, Tally()), [11, 222, 3333, 44]
    parts, shown = [(persona(1), 1.0)], Detokenizer(tiny_model, skip_special_tokens=False)
    answer: list[tuple[int, float]] = []
    for _ in range(3):
        tokens = [*prompt, *(token for token, _ in answer), 0]
        row = table(judge.model, tokens, parts, last=1, start=len(prompt) - 1)[0]
        answer.append((int(row.argmax()), float(row.max())))

    def check(*parts: tuple[Persona, float], said: list[tuple[int, float]] = answer) -> None:
        text = "".join(shown.texts(prompt, [token for token, _ in said]))
        asyncio.run(judge.check(prompt, [Piece(said, text)], parts))

    check(*parts)
    with pytest.raises(Wrong):
        asyncio.run(judge.check(prompt, [Piece(answer, "")], parts, "all"))
    other = [(answer[0][0] + 1, answer[0][1]), *answer[1:]]
    for wrong in ((), ((persona(2), 1.0),), ((persona(1), 1.001),)):
        with pytest.raises(Wrong):
            check(*wrong)
    with pytest.raises(Wrong):
        check(*parts, said=other)


def test_content_that_a_name_cannot_have_held_is_seen() -> None:
    """While a change is under way the old and the new are right, after it only the new."""
    names, wish = Names(), Wish({"p0": 1.0}, 0.5, "field", {})
    old, new = persona(1), persona(2)
    for each in (old, new):
        names.remember(each)
    held = names.of["north", "p0"]

    def right(shown: Persona, since: float) -> bool:
        header = f"p0@{shown.digest[:12]};strength=0.5;scope=answers"
        try:
            return wish.parts(header, names, "north", since, time.monotonic()) == [(shown, 0.5)]
        except Wrong:
            return False

    start = time.monotonic()
    assert not right(old, start)
    held.change(old.digest)
    held.acknowledged()
    held.change(new.digest)
    assert right(old, time.monotonic()) and right(new, time.monotonic())
    held.acknowledged()
    assert right(new, time.monotonic()) and not right(old, time.monotonic())
    assert right(old, start)
    for header in (
        None,
        f"p0@{new.digest[:12]};strength=1.0;scope=answers",
        f"p0@{new.digest[:12]};strength=0.5;scope=all",
        f"p0@{new.digest[:12]};strength=0.5",
        f"p1@{new.digest[:12]};strength=0.5;scope=answers",
    ):
        with pytest.raises(Wrong):
            wish.parts(header, names, "north", start, time.monotonic())


def test_a_change_that_was_never_answered_is_found_out_after_a_restart() -> None:
    held = Names().of["north", "p0"]
    held.change("a")
    held.acknowledged()
    held.change("b")
    assert not held.settled
    assert not held.found(None)
    assert held.found("a")
    assert held.settled and held.holds == "a"


def test_what_other_programs_map_is_not_a_server_s_memory(tmp_path: Path) -> None:
    """A file's pages are divided among all who map them: as one of them ends, the others' shares grow."""
    (tmp_path / "file").write_bytes(bytes(64 * MIB))
    code = (
        "import mmap, sys\n"
        "file = open(sys.argv[1], 'rb')\n"
        "mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "pages = sum(mapped[at] for at in range(0, len(mapped), 4096))\n"
        "own = bytearray(b'x' * int(sys.argv[2]))\n"
        "print(flush=True)\n"
        "input()\n"
    )

    def start(own: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "file", str(own)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline()
        return process

    def shown() -> tuple[int, int]:
        return psutil.Process(small.pid).memory_full_info().pss, own_memory(small.pid)

    with start(0) as small:
        with start(32 * MIB) as large:
            beside, own = shown()
            assert own_memory(large.pid) > own + 31 * MIB
            large.communicate("")
        alone, after = shown()
        assert alone > beside + 24 * MIB
        assert abs(after - own) < MIB
        small.communicate("")


def test_memory_that_keeps_growing_is_seen() -> None:
    def grown(mib_a_minute: float) -> bool:
        samples = [
            Sample(1, 5.0 * index, index, round((900 + mib_a_minute * index / 12) * MIB))
            for index in range(240)
        ]
        return bool(result(Tally(), samples, [], 1200)["leaks"])

    assert not grown(0.1)
    assert grown(3 * MOST_GROWTH / MIB / 20 * 1.1)
