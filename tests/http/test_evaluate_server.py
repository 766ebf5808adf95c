"""``palign-fit evaluate --server`` against a real server measures what Hugging Face measures here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from palign_fit.cli import app
from palign_fit.inputs.inventory import built_in
from typer.testing import CliRunner, Result

from tests.conftest import Server
from vllm_palign import Persona, save

NAMES = ["p0", "p1"]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects with the names of served personas; 110 of 120 items may be learned from."""
    folder = tmp_path_factory.mktemp("people")
    items = built_in().items
    rng = np.random.default_rng(0)
    rows = [
        {"id": name, "answers": {item.id: int(rng.integers(1, 6)) for item in items}}
        for name in NAMES
    ]
    (folder / "answers.json").write_text(json.dumps(rows))
    (folder / "train.txt").write_text("\n".join(item.id for item in items[:110]))
    return folder


def evaluate(people: Path, model: Path, *options: object) -> Result:
    command = [
        "evaluate", "--model", model, "--answers", people / "answers.json",
        "--train-items", people / "train.txt", "--strength", "0.5", "--json", *options,
    ]  # fmt: skip
    return CliRunner().invoke(app, [str(one) for one in command])


def numbers(value: Any, path: str = "") -> dict[str, float]:
    """Every number of a report's conditions, by its place."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    else:
        return {path: float(value)} if isinstance(value, (int, float)) else {}
    found: dict[str, float] = {}
    for key, part in parts:
        found |= numbers(part, f"{path}/{key}")
    return found


def test_a_server_and_hugging_face_measure_the_same(
    tiny_server: Server,
    tiny_model: Path,
    tiny_personas: tuple[Path, dict[str, Persona]],
    people: Path,
) -> None:
    """Few-shot prompts have no room on the tiny server."""
    asked = ["--conditions", "palign+prompt", "--measures", "statements,drift"]
    reports = []
    for options in (["--personas", tiny_personas[0]], ["--server", tiny_server.url]):
        result = evaluate(people, tiny_model, *asked, *options)
        assert result.exit_code == 0, (result.output, result.exception)
        reports.append(json.loads(result.stdout))
    here, served = reports
    assert served["backend"]["kind"] == "server" and served["backend"]["model"] == "base"
    for name in NAMES:
        digest = served["backend"]["personas"][name]
        assert tiny_personas[1][name].digest.startswith(digest)
    mine, theirs = numbers(here["conditions"]), numbers(served["conditions"])
    assert mine.keys() == theirs.keys() and len(mine) > 80
    worst = max((abs(mine[key] - theirs[key]), key) for key in mine)
    print(f"{len(mine)} figures, largest difference {worst[0]:.2e} at {worst[1]}")
    assert worst[0] < 5e-3, worst
    steered = here["conditions"]["palign+prompt"]["traits"]["O"]["nats"]
    assert min(map(abs, steered)) > 0.05


def test_what_a_server_does_not_serve_is_never_measured(
    tiny_server: Server,
    tiny_model: Path,
    tiny_personas: tuple[Path, dict[str, Persona]],
    people: Path,
    tmp_path: Path,
) -> None:
    ask = ["--conditions", "palign", "--measures", "drift", "--server", tiny_server.url]
    for name in NAMES:
        other = replace(tiny_personas[1][name], alpha=1.0, digest="")
        save(other, tmp_path / f"{name}.safetensors")
    refusals = {
        "serves other bytes as": evaluate(people, tiny_model, *ask, "--personas", tmp_path),
        "leave --server out": evaluate(
            people, tiny_model, *ask[2:], "--conditions", "pas-reference"
        ),
    }
    rows = json.loads((people / "answers.json").read_text())
    (tmp_path / "answers.json").write_text(json.dumps([{**rows[0], "id": "nobody"}]))
    (tmp_path / "train.txt").write_text((people / "train.txt").read_text())
    refusals["answered 404"] = evaluate(tmp_path, tiny_model, *ask)
    for message, result in refusals.items():
        assert result.exit_code == 2 and message in result.stderr, (message, result.output)
        assert result.stdout == ""


def test_a_server_that_is_not_there_ends_with_exit_1(people: Path, tiny_model: Path) -> None:
    result = evaluate(people, tiny_model, "--server", "http://127.0.0.1:9")
    assert result.exit_code == 1 and "cannot be reached" in result.stderr


def test_a_server_says_what_hugging_face_says(
    tiny_server: Server, tiny_model: Path, tiny_personas: tuple[Path, dict[str, Persona]]
) -> None:
    from palign_fit.evaluation.huggingface import HuggingFaceBackend
    from palign_fit.evaluation.server import ServerBackend
    from palign_fit.evaluation.tasks import Setting, Speech
    from palign_fit.model.model import open_model

    prompt = "You are a very talkative person."
    settings = [Setting(), *(Setting(prompt, one, tiny_personas[1][one]) for one in NAMES)]
    questions = ("How are you?", "A friend plays you a very strange new piece of music.")
    speeches = [Speech(setting, question) for setting in settings for question in questions]
    here = HuggingFaceBackend(open_model(str(tiny_model), device="cpu"), 0.5)
    served = ServerBackend(tiny_server.url, str(tiny_model), api_key=None, strength=0.5)
    said = here.speak(speeches, 12, lambda _: None)
    assert served.speak(speeches, 12, lambda _: None) == said
    assert len(set(said)) == len(said)
