"""palign-fit ask: a form from a pipe or a terminal to an answers file."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from palign_fit.cli import app
from palign_fit.inputs.answers import read_answers
from palign_fit.inputs.sitting import spread
from typer.testing import CliRunner, Result

from tests.conftest import ROOT
from tests.directions import tiny_directions
from vllm_palign.directions import to_bytes
from vllm_palign.directions.inventory import Inventory


def ask(typed: str | bytes, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["ask", *(str(one) for one in arguments)], input=typed)


def lines(*said: object) -> str:
    return "".join(f"{one}\n" for one in said)


def held(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def test_answers_from_a_pipe_become_an_answers_file_and_the_next_command_is_said(
    tmp_path: Path, inventory: Inventory
) -> None:
    out = tmp_path / "dana.json"
    values = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]
    result = ask(lines(*values), "--form", 10, "--out", out)
    assert result.exit_code == 0, result.output
    form = spread(inventory, 10)
    assert held(out) == {
        "id": "dana",
        "answers": {item.id: value for item, value in zip(form, values, strict=True)},
    }
    assert read_answers(out, inventory)[0].answered == 10
    assert "10 of 10" in result.stdout
    assert f"palign-fit run --model MODEL --answers {out} --out personas/" in result.stdout
    assert all(f"I {item.text}." in result.stderr for item in form)
    assert "1 very inaccurate" in result.stderr


def test_quitting_keeps_the_answers_and_the_same_command_goes_on(
    tmp_path: Path, inventory: Inventory
) -> None:
    out = tmp_path / "dana.json"
    first = ask(lines(1, 2, "s", "B", "b", 5, "q"), "--form", 10, "--out", out, "--id", "Dana.2")
    form = [item.id for item in spread(inventory, 10)]
    assert held(out) == {"id": "Dana.2", "answers": {form[0]: 1, form[1]: 5}}
    assert "2 of 10" in first.stdout and "goes on" in first.stdout and "at least 6" in first.stdout
    second = ask(lines(*[3] * 8), "--form", 10, "--out", out)
    assert held(out)["id"] == "Dana.2" and len(held(out)["answers"]) == 10
    assert form[0] + '"' in out.read_text() and held(out)["answers"][form[1]] == 5
    assert second.exit_code == 0
    more = ask(lines(4, "q"), "--form", 30, "--out", out, "--json")
    told = json.loads(more.stdout)
    assert (told["answered"], told["asked"], told["left"]) == (11, 30, 19)
    assert told["next"].startswith("palign-fit run --model MODEL")


def test_answers_stand_in_the_inventorys_order(tmp_path: Path, inventory: Inventory) -> None:
    ask(lines(*[2] * 30), "--out", tmp_path / "a.json")
    order = [item.id for item in inventory.items]
    answered = list(held(tmp_path / "a.json")["answers"])
    assert answered == sorted(answered, key=order.index) and len(answered) == 30


def test_what_is_no_answer_in_a_pipe_ends_with_exit_2_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    for typed in (lines(1, 2, 6), lines(1, "", 3), lines(1, "yes"), b"1\n\xff\n"):
        result = ask(typed, "--out", out)
        assert result.exit_code == 2 and not out.exists()
        assert "standard input" in result.stderr and "1 to 5" in result.stderr
    out.write_text('{"id": "a", "answers": {"q1": 3}}')
    assert ask(lines(1, 7), "--out", out).exit_code == 2
    assert held(out) == {"id": "a", "answers": {"q1": 3}}
    assert list(tmp_path.iterdir()) == [out]


def test_nothing_answered_writes_nothing(tmp_path: Path) -> None:
    for typed in ("", lines("q"), lines("s", "b", "q")):
        result = ask(typed, "--out", tmp_path / "a.json")
        assert result.exit_code == 0 and not list(tmp_path.iterdir())
        assert "nothing was answered" in result.stdout


def test_directions_say_which_items_to_ask(tmp_path: Path) -> None:
    made = tiny_directions(3, 4, 16)
    (tmp_path / "d.safetensors").write_bytes(to_bytes(made))
    out = tmp_path / "a.json"
    result = ask(
        lines(*[1, 2, 4, 5, 1] * 2), "--form", 10, "--directions", tmp_path / "d.safetensors", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert set(held(out)["answers"]) == {
        made.inventory.items[place].id for place in made.order[:10]
    }
    assert f"run --directions {tmp_path / 'd.safetensors'} --answers" in result.stdout
    assert made.from_answers("a", held(out)["answers"]).name == "a"


def test_an_inventory_of_ones_own_is_asked_and_named_in_the_next_command(tmp_path: Path) -> None:
    own = tmp_path / "own items.csv"
    rows = [f"i{n},like thing {n},{'OCEAN'[n % 5]},f,{'+-'[n // 5 % 2]}" for n in range(12)]
    own.write_text("\n".join(["id,text,trait,facet,key", *rows]))
    result = ask(
        lines(*[1, 5] * 6), "--form", "all", "--inventory", own, "--out", tmp_path / "a.json"
    )
    assert list(held(tmp_path / "a.json")["answers"]) == [f"i{n}" for n in range(12)]
    assert f"--inventory '{own}'" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "a.csv"], "ending in .json"),
        (["--out", "none/a.json"], "a folder that is there"),
        (["--out", "-a.json"], "--id"),
        (["--out", "a.json", "--id", "a b"], "--id 'a b'"),
        (["--out", "there.json", "--id", "ben"], "holds answers of 'ann'"),
        (["--out", "two.json"], "holds 2 people"),
        (["--out", "odd.json"], "not in inventory"),
        (["--out", "a.json", "--inventory", "i.csv", "--directions", "d"], "leave one out"),
        (["--out", "a.json", "--directions", "two.json"], "two.json"),
        (["--out", "a.json", "--form", "20"], "20"),
    ],
)
def test_bad_usage_ends_with_exit_2_before_anybody_is_asked(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "there.json": '{"id": "ann", "answers": {"q1": 3}}',
        "two.json": '[{"id": "ann", "answers": {"q1": 3}}, {"id": "ben", "answers": {"q1": 3}}]',
        "odd.json": '{"id": "ann", "answers": {"x1": 3}}',
    }
    for name, text in files.items():
        Path(name).write_text(text)
    result = ask(lines(*[3] * 30), *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and "[1/" not in result.stderr
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_at_a_terminal_every_answer_is_kept_at_once_and_a_slip_is_only_told(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    code = (
        "import signal, sys\n"
        # A suite that a script started in the background would hand on that Ctrl-C is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "for name in ('torch', 'transformers', 'vllm'): sys.modules[name] = None\n"
        f"sys.argv = ['palign-fit', 'ask', '--form', '10', '--out', {str(out)!r}]\n"
        "from palign_fit.cli import main\n"
        "main()"
    )
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=follower, stdout=subprocess.PIPE, stderr=follower,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}, text=True,
    )  # fmt: skip
    os.close(follower)

    def until(text: str) -> str:
        seen = ""
        while text not in seen:
            seen += os.read(leader, 1024).decode()
        return seen

    until("[1/10]")
    os.write(leader, b"4\n")
    until("[2/10]")
    assert list(held(out)["answers"].values()) == [4]
    os.write(leader, b"9\n")
    assert "wanted 1 to 5" in until("[2/10]")
    process.send_signal(signal.SIGINT)  # Ctrl-C
    said, _ = process.communicate(timeout=60)
    os.close(leader)
    assert process.returncode == 0
    assert "1 of 10" in said and list(held(out)["answers"].values()) == [4]
