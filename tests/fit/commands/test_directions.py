"""palign-fit directions, and what is made of them: the same bytes as with the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from palign_fit.cli import app
from typer.testing import CliRunner, Result

from tests.fit.conftest import answer_sheet
from vllm_palign.directions import load_directions
from vllm_palign.directions.inventory import Inventory
from vllm_palign.persona import load


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def room(
    tiny_checkpoint: Path, inventory: Inventory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[object]]:
    """A folder with directions of the tiny model and answers of three people, one of them with gaps."""
    folder = tmp_path_factory.mktemp("directions")
    rows: list[dict[str, Any]] = [
        {"id": name, "answers": answer_sheet(inventory, n)} for n, name in enumerate(["ann", "ben"])
    ]
    few = dict(list(answer_sheet(inventory, 3).items())[:11])
    rows.append({"id": "kim", "answers": few})
    (folder / "answers.json").write_text(json.dumps(rows))
    model: list[object] = ["--model", tiny_checkpoint, "--device", "cpu", "--heads", 4]
    model += ["--cache", folder / "cache"]
    result = call("directions", *model, "--out", folder / "d.safetensors")
    assert result.exit_code == 0, result.output
    assert "4 heads, 120 items of palign-ocean-120" in result.stdout
    return folder, model


def test_directions_made_again_are_the_same_bytes(room: tuple[Path, list[object]]) -> None:
    folder, model = room
    again = folder / "again.safetensors"
    result = call("directions", *model, "--no-cache", "--out", again, "--json")
    told = json.loads(result.stdout)
    assert again.read_bytes() == (folder / "d.safetensors").read_bytes()
    assert told["digest"] == load_directions(again).digest
    assert told["bytes"] == again.stat().st_size


def test_people_of_directions_are_the_people_of_the_model(room: tuple[Path, list[object]]) -> None:
    folder, model = room
    common: list[object] = [
        "--answers",
        folder / "answers.json",
        "--description",
        "x",
    ]
    by_model = call("run", *model, *common, "--no-check", "--out", folder / "m")
    by_directions = call(
        "run", "--directions", folder / "d.safetensors", *common, "--out", folder / "d"
    )
    assert by_model.exit_code == by_directions.exit_code == 0, by_directions.output
    names = ["ann.safetensors", "ben.safetensors", "kim.safetensors"]
    assert sorted(path.name for path in (folder / "d").iterdir()) == names
    for name in names:
        assert (folder / "d" / name).read_bytes() == (folder / "m" / name).read_bytes()
    given = ["--alpha", "2.5", "--out"]
    assert call("run", *model, *common, "--no-check", *given, folder / "m2").exit_code == 0
    call("run", "--directions", folder / "d.safetensors", *common, *given, folder / "d2")
    assert (folder / "d2" / names[0]).read_bytes() == (folder / "m2" / names[0]).read_bytes()
    # Alone or among others, a person is the same.
    (folder / "ben.json").write_text(
        json.dumps(json.loads((folder / "answers.json").read_text())[1])
    )
    call(
        "run", "--directions", folder / "d.safetensors", "--answers", folder / "ben.json",
        "--description", "x", "--out", folder / "ben.safetensors",
    )  # fmt: skip
    assert (folder / "ben.safetensors").read_bytes() == (folder / "d" / names[1]).read_bytes()


def test_what_a_server_makes_is_what_run_makes_but_for_what_run_notes(
    room: tuple[Path, list[object]],
) -> None:
    folder, _ = room
    (answers,) = (
        one["answers"]
        for one in json.loads((folder / "answers.json").read_text())
        if one["id"] == "kim"
    )
    call(
        "run", "--directions", folder / "d.safetensors", "--answers", folder / "answers.json",
        "--out", folder / "same",
    )  # fmt: skip
    ran = load(folder / "same" / "kim.safetensors")
    served = load_directions(folder / "d.safetensors").from_answers("kim", answers)
    assert (served.offsets == ran.offsets).all() and served.alpha == ran.alpha
    assert served.fit == {k: v for k, v in ran.fit.items() if k not in ("items", "inputs")}


def test_trait_values_of_directions_are_those_of_the_model(room: tuple[Path, list[object]]) -> None:
    folder, model = room
    values = ["E=1.5", "n=-0.5", "--name", "t", "--out"]
    one, two = folder / "t1.safetensors", folder / "t2.safetensors"
    assert call("traits", *values, one, *model, "--no-check").exit_code == 0
    assert call("traits", *values, two, "--directions", folder / "d.safetensors").exit_code == 0
    assert one.read_bytes() == two.read_bytes()


def test_items_held_out_teach_nothing(
    room: tuple[Path, list[object]], inventory: Inventory
) -> None:
    folder, model = room
    half = [item.id for item in inventory.items[:60]]
    (folder / "half.txt").write_text("\n".join(half))
    out = folder / "half.safetensors"
    result = call("directions", *model, "--train-items", folder / "half.txt", "--out", out)
    assert result.exit_code == 0, result.output
    made = load_directions(out)
    assert made.whole.rows[:60].all() and not made.whole.rows[60:].any()
    assert not made.whole.basis[5 + 60 :].any()


def test_inspect_shows_directions_as_a_card(room: tuple[Path, list[object]]) -> None:
    folder, _ = room
    card = call("inspect", folder / "d.safetensors").stdout
    assert "directions of" in card and "tiny-fit" in card and "Openness" in card
    assert "The 10 items to ask first" in card
    told = json.loads(call("inspect", folder / "d.safetensors", "--json").stdout)
    assert told["format"] == "palign.directions" and len(told["heads"]) == 4
    result = call("inspect", folder / "d.safetensors", "--plot", folder / "x.png")
    assert result.exit_code == 2 and "--plot" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "got neither, wanted one"),
        (["--directions", "D", "--model", "m"], "got both, wanted one"),
        (["--directions", "D", "--heads", "3"], "--heads: not beside --directions"),
        (["--directions", "D", "--seed", "0", "--device", "cpu"], "--seed, --device: not beside"),
        (["--directions", "D", "--check"], "--check: not beside"),
        (["--directions", "none"], "none: cannot be read"),
        (["--directions", "answers.json"], "is not a safetensors file"),
    ],
)
def test_a_model_or_directions_of_one(
    options: list[str], message: str, room: tuple[Path, list[object]]
) -> None:
    folder, _ = room
    places = {"D": "d.safetensors", "none": "none", "answers.json": "answers.json"}
    given = [folder / places[one] if one in places else one for one in options]
    result = call(
        "run", *given, "--answers", folder / "answers.json", "--out", folder / "none" / "o"
    )
    assert result.exit_code == 2 and message in result.stderr, result.stderr
    assert not (folder / "none").exists()


def test_directions_are_written_whole_or_not_at_all(room: tuple[Path, list[object]]) -> None:
    folder, model = room
    for more, message in (
        (["--heads", 13], "has 12 heads in all"),
        (["--out", folder / "none" / "x"], "in a folder that is there"),
    ):
        result = call("directions", *model, "--out", folder / "no.safetensors", *more)
        assert result.exit_code == 2 and message in result.stderr
    assert not (folder / "no.safetensors").exists()
