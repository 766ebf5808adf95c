from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from palign_fit.cli import app
from palign_fit.inputs.answers import read_answers
from palign_fit.inputs.inventory import built_in, read_inventory
from typer.testing import CliRunner, Result

from tests.fit.conftest import answer_sheet
from vllm_palign.directions.inventory import Inventory
from vllm_palign.persona import Persona, load, save

COMMANDS = ["run", "traits", "inspect", "unpack", "inventory", "template", "ask", "try"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def refused(result: Result) -> str:
    """The message of a run that ended with exit 2, without a traceback and without output."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == "" and "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def fitted(
    tiny_checkpoint: Path, inventory: Inventory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A folder with the personas of two subjects, and what --json printed."""
    folder = tmp_path_factory.mktemp("cli")
    rows = [
        {"id": name, "answers": answer_sheet(inventory, n)} for n, name in enumerate(["ann", "ben"])
    ]
    (folder / "answers.json").write_text(json.dumps(rows))
    result = call(
        "run", "--model", tiny_checkpoint, "--answers", folder / "answers.json", "--device", "cpu",
        "--out", folder / "deep" / "out", "--heads", 4, "--description", "two", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder / "deep" / "out", json.loads(result.stdout)


def test_several_subjects_become_one_file_each(fitted: tuple[Path, dict[str, Any]]) -> None:
    folder, printed = fitted
    assert sorted(path.name for path in folder.iterdir()) == ["ann.safetensors", "ben.safetensors"]
    for report in printed["personas"]:
        persona = load(report["path"])
        assert (persona.name, persona.digest) == (report["id"], report["digest"])
        assert persona.description == "two"
        assert report["weak"] == persona.fit["weak"]
    assert printed["model"] == "tiny-fit" and printed["method"] == "palign"


def test_no_path_of_this_machine_is_in_the_file(
    fitted: tuple[Path, dict[str, Any]], tiny_checkpoint: Path
) -> None:
    data = (fitted[0] / "ann.safetensors").read_bytes()
    assert str(tiny_checkpoint.parent).encode() not in data


def test_one_subject_may_go_to_a_named_file(
    tiny_checkpoint: Path, answers_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.safetensors"
    result = call(
        "run", "--model", tiny_checkpoint, "--answers", answers_file, "--out", out, "--heads", 3,
        "--alpha", 20, "--name", "Anna", "--base-model", "org/tiny", "--method", "pas-reference",
    )  # fmt: skip
    assert result.exit_code == 0 and "alpha 20" in result.stdout
    assert "alpha 20 raises the perplexity of chats" in result.stderr
    persona = load(out)
    assert (persona.name, persona.alpha, persona.base_model) == ("Anna", 20, "org/tiny")
    assert persona.method == "pas-reference" and len(persona.layers) == 3


def test_a_users_own_inventory_is_used(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = [f"x{n},like thing number {n},{'OCEAN'[n % 5]},f,{'+-'[n % 2]}" for n in range(30)]
    own = tmp_path / "own.csv"
    own.write_text("\n".join(["id,text,trait,facet,key", *rows]))
    assert call("template", "--inventory", own, "--out", tmp_path / "a.json").exit_code == 0
    sheet = json.loads((tmp_path / "a.json").read_text())
    sheet["answers"] = {item: 1 + n % 5 for n, item in enumerate(sheet["answers"])}
    (tmp_path / "a.json").write_text(json.dumps(sheet))
    result = call(
        "run", "--model", tiny_checkpoint, "--answers", tmp_path / "a.json", "--inventory", own,
        "--out", tmp_path / "out.safetensors", "--heads", 2, "--alpha", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "out.safetensors").fit["inventory"]["name"] == "own"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alpha", "much"], "wanted auto or a number"),
        (["--alpha", "nan"], "wanted auto or a number"),
        (["--alpha", "-1"], "alpha is -1.0"),
        (["--heads", "0"], "heads is 0"),
        (["--heads", "13"], "has 12 heads in all"),
        (["--seed", "-1"], "seed is -1"),
        (["--method", "magic"], "magic"),
        (["--device", "tpu"], "tpu"),
        (["--inventory", "none.csv"], "cannot be read"),
        (["--answers", "none.json"], "cannot be read"),
        (["--model", "no-such-folder/x/y"], "cannot be opened"),
        (["--description", "a\x1b[31m"], "printable"),
    ],
)
def test_bad_options_end_with_exit_2_and_write_nothing(
    options: list[str], message: str, tiny_checkpoint: Path, answers_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "out"
    result = call(
        "run", "--model", tiny_checkpoint, "--answers", answers_file, "--out", out, *options
    )
    assert message in refused(result)
    assert not out.parent.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"id": "../x", "answers": {"q1": 3}}', "id,q1\na,9\n"]
)
def test_bad_answers_end_with_exit_2_and_write_nothing(
    text: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text(text)
    out = tmp_path / "out"
    refused(call("run", "--model", tiny_checkpoint, "--answers", tmp_path / "a", "--out", out))
    assert not out.exists()


def test_two_subjects_do_not_fit_one_file(
    tiny_checkpoint: Path, inventory: Inventory, tmp_path: Path
) -> None:
    rows = [{"id": name, "answers": answer_sheet(inventory, 1)} for name in ("a", "b")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    arguments = ["run", "--model", tiny_checkpoint, "--answers", tmp_path / "a.json", "--out"]
    assert "give a folder" in refused(call(*arguments, tmp_path / "x.safetensors"))
    assert "each has its own id" in refused(call(*arguments, tmp_path / "x", "--name", "n"))


def test_out_below_a_file_is_refused_before_any_work(answers_file: Path) -> None:
    for out in (answers_file, answers_file / "deep"):
        result = call("run", "--model", "unused", "--answers", answers_file, "--out", out)
        assert "is not a folder" in refused(result)


def test_a_failure_half_way_leaves_no_partial_file(
    tiny_checkpoint: Path, answers_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", broken)
    out = tmp_path / "out"
    result = call(
        "run", "--model", tiny_checkpoint, "--answers", answers_file, "--out", out,
        "--heads", 2, "--alpha", 1,
    )  # fmt: skip
    assert "No space left" in refused(result)
    assert list(out.iterdir()) == []


def test_a_model_that_cannot_be_steered_ends_with_exit_1(
    tiny_checkpoint: Path, answers_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("palign_fit.model.model.find_projections", lambda model: [])
    result = call(
        "run", "--model", tiny_checkpoint, "--answers", answers_file, "--out", tmp_path / "out"
    )
    assert result.exit_code == 1 and "cannot be steered" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_card_shows_who_how_strong_and_what_was_measured(
    fitted: tuple[Path, dict[str, Any]],
) -> None:
    result = call("inspect", fitted[0] / "ann.safetensors")
    assert result.exit_code == 0
    for part in (
        "ann", load(fitted[0] / "ann.safetensors").digest, "3 layers x 4 heads x 16",
        "perplexity", "held-out", "120 of 120 items", "WEAK", "layer",
    ):  # fmt: skip
        assert part in result.stdout


def test_the_card_shows_how_strong_a_persona_may_be_asked_for(
    fitted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    made = load(fitted[0] / "ann.safetensors")
    file = save(
        replace(made, fit={**made.fit, "max_strength": 1.75}, digest=""),
        tmp_path / "x.safetensors",
    )
    assert "at most" in (shown := call("inspect", file).stdout) and "strength 1.75" in shown
    assert json.loads(call("inspect", file, "--json").stdout)["fit"]["max_strength"] == 1.75
    earlier = {name: value for name, value in made.fit.items() if name != "max_strength"}
    file = save(replace(made, fit=earlier, digest=""), tmp_path / "y.safetensors")
    assert "at most" not in call("inspect", file).stdout


def test_inspect_json_is_one_object_with_a_norm_and_score_per_head(
    fitted: tuple[Path, dict[str, Any]],
) -> None:
    shown = json.loads(call("inspect", fitted[0] / "ann.safetensors", "--json").stdout)
    persona = load(fitted[0] / "ann.safetensors")
    assert shown["digest"] == persona.digest and shown["fit"] == persona.fit
    for k, head in enumerate(shown["heads"]):
        assert (head["layer"], head["head"]) == (persona.layers[k], persona.heads[k])
        assert head["norm"] == pytest.approx(
            np.linalg.norm(persona.alpha * persona.offsets[k]), rel=1e-4
        )
        assert head["score"] == persona.fit["scores"][k]


def test_the_head_map_is_a_png_and_the_same_every_time(
    fitted: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("one.png", "two.png"):
        assert (
            call("inspect", fitted[0] / "ann.safetensors", "--plot", tmp_path / name).exit_code == 0
        )
    data = (tmp_path / "one.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data == (tmp_path / "two.png").read_bytes()


def test_the_head_map_says_what_is_wrong(
    fitted: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = fitted[0] / "ann.safetensors"
    assert "ending in .png" in refused(call("inspect", file, "--plot", tmp_path / "x.jpg"))
    assert "cannot be written" in refused(
        call("inspect", file, "--plot", tmp_path / "no" / "x.png")
    )
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "vllm-palign[plot]" in refused(call("inspect", file, "--plot", tmp_path / "x.png"))


@pytest.mark.parametrize(
    "fit",
    [
        {},
        {"scores": "x", "alphas": 3, "warnings": {}, "inventory": 1, "answered": [], "weak": "yes"},
        {"scores": [True], "alphas": [{"alpha": []}], "warnings": [1, "[red]\x1b[2J"], "tool": {}},
        {"alphas": [], "inventory": {}, "perplexity": None, "alignment": "x", "score": "[/]"},
        {
            "effect": 10**400,
            "perplexity": -(10**400),
            "sliders": {"E": 10**400},
            "alphas": [{"alpha": 10**400}],
        },
    ],
)
def test_a_file_of_another_maker_still_gets_a_card(fit: dict[str, Any], tmp_path: Path) -> None:
    foreign = Persona(
        name="[bold]odd[/bold]",
        layers=np.array([0], np.int32),
        heads=np.array([1], np.int32),
        offsets=np.ones((1, 4), np.float32),
        alpha=1.0,
        base_model="m",
        num_layers=2_000_000_000,
        num_heads=64,
        head_dim=4,
        fit=fit,
    )
    save(foreign, tmp_path / "f.safetensors")
    result = call("inspect", tmp_path / "f.safetensors")
    assert result.exit_code == 0 and "[bold]odd[/bold]" in result.stdout
    assert "\x1b[2J" not in result.stdout
    assert call("inspect", tmp_path / "f.safetensors", "--json").exit_code == 0
    result = call("inspect", tmp_path / "f.safetensors", "--plot", tmp_path / "f.png")
    assert "can be drawn" in refused(result)


def test_a_file_that_is_no_persona_ends_with_exit_2(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\x80\x04pickle")
    assert "never opened" in refused(call("inspect", tmp_path / "x"))
    assert "cannot be read" in refused(call("inspect", tmp_path / "none"))


def test_the_template_shows_the_statements_to_people_and_to_programs(
    tmp_path: Path, inventory: Inventory
) -> None:
    printed = json.loads(call("template", "--json").stdout)
    first = inventory.items[0]
    assert printed["statements"][first.id] == f"I {first.text}."
    assert list(printed["answers"]) == [item.id for item in inventory.items]
    assert call("template", "--out", tmp_path / "form.csv").exit_code == 0
    rows = list(csv.reader((tmp_path / "form.csv").read_text().splitlines()))
    assert rows[0] == ["item", "statement", "answer"] and rows[1][0] == "id"
    assert [row[1] for row in rows[2:]] == [f"I {item.text}." for item in inventory.items]
    filled = [[*row[:2], row[2] if row[0] in ("item", "id") else "4"] for row in rows]
    with (tmp_path / "form.csv").open("w", newline="") as file:
        csv.writer(file).writerows(filled)
    answers = read_answers(tmp_path / "form.csv", inventory)
    assert answers.ids == ("subject",) and (answers.table == 4).all()


@pytest.mark.parametrize("command", ["run", "pairs"])
def test_the_help_of_alpha_says_what_auto_does(command: str) -> None:
    said = " ".join(call(command, "--help").stdout.replace("│", " ").split())
    assert "auto: as far as chats stay what they were" in said and "held-out items" not in said


def test_the_inventory_can_be_printed_and_written(tmp_path: Path, inventory: Inventory) -> None:
    assert call("inventory").stdout == inventory.to_csv()
    assert call("inventory", "--out", tmp_path / "i.csv").exit_code == 0
    assert (tmp_path / "i.csv").read_text() == inventory.to_csv()
    assert "cannot be written" in refused(call("inventory", "--out", tmp_path / "no" / "i.csv"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0 and f"Example: palign-fit {command}" in result.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_whoever_opens_a_model_may_be_told_how_much_memory_it_may_take(command: str) -> None:
    text = call(command, "--help").stdout
    assert ("--device" in text) == ("--memory" in text)


@pytest.mark.parametrize("arguments", [["nonsense"], ["run"], ["inspect"], ["run", "--bogus"]])
def test_bad_usage_ends_with_exit_2(arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2


def test_help_needs_neither_torch_nor_transformers_nor_vllm() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'vllm', 'matplotlib'): sys.modules[name] = None\n"
        "sys.argv = ['palign-fit', '--help']\n"
        "from palign_fit.cli import main\n"
        "main()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_stderr_of_a_machine_run_holds_no_progress(
    tiny_checkpoint: Path, answers_file: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "palign_fit", "run", "--model", str(tiny_checkpoint)]
    command += ["--answers", str(answers_file), "--out", str(tmp_path / "o"), "--heads", "2"]
    done = subprocess.run([*command, "--alpha", "1", "--json"], capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert done.returncode == 0 and told["personas"][0]["id"] == "ann"
    # A weak persona is the only thing there is to say.
    said = [line.partition(" persona(s)")[0] for line in done.stderr.splitlines()]
    assert said == ["palign-fit: WEAK: 1 of 1"] * told["weak"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_and_json(command: str) -> None:
    text = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"}).output
    assert "Example: palign-fit" in text
    assert "--json" in text


def test_the_printed_inventory_is_read_back_the_same(tmp_path: Path) -> None:
    for options, suffix in (([], "csv"), (["--json"], "json")):
        path = tmp_path / f"items.{suffix}"
        assert CliRunner().invoke(app, ["inventory", *options, "--out", str(path)]).exit_code == 0
        assert read_inventory(path).items == built_in().items
