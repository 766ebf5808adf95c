"""palign-fit try: plain and steered answers of a tiny model, in every shape they are shown in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from palign_fit.cli import app
from palign_fit.model.prompts import chat_prefix
from palign_fit.reporting.side_by_side import NARROWEST, side_by_side
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.fit.model.test_model import persona
from tests.fit.model.test_steer import generated, two_steps
from vllm_palign.persona import save

QUESTIONS = ["What are you like?", "Tell me about yourself."]
MORE = ["--max-tokens", "12", "--device", "cpu"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["try", *(str(one) for one in arguments)])


@pytest.fixture(scope="module")
def ann(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = dataclasses.replace(persona(), name="ann", base_model="tiny-fit", digest="")
    return save(made, tmp_path_factory.mktemp("try") / "ann.safetensors")


@pytest.fixture(scope="module")
def said(ann: Path, tiny_checkpoint: Path) -> dict[str, Any]:
    result = call(
        ann, *QUESTIONS, "--model", tiny_checkpoint, "--strength", "0,1,-2", "--json", *MORE
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert isinstance(told, dict)
    return told


def test_every_question_is_answered_at_every_strength(said: dict[str, Any]) -> None:
    assert [(one["question"], one["strength"]) for one in said["answers"]] == [
        (question, strength) for question in QUESTIONS for strength in (0.0, 1.0, -2.0)
    ]
    assert (said["persona"], said["scope"], said["model"]) == ("ann", "answers", "tiny-fit")
    assert len({one["text"] for one in said["answers"]}) > 3


def words(tiny: Any, ids: list[int]) -> str:
    end = tiny.tokenizer.eos_token_id
    return str(
        tiny.tokenizer.decode(
            ids[: ids.index(end)] if end in ids else ids, skip_special_tokens=True
        )
    )


def test_strength_0_is_the_plain_model_and_others_a_plain_prompt_with_a_steered_answer(
    said: dict[str, Any], tiny: Any
) -> None:
    for one in said["answers"]:
        prompt = chat_prefix(tiny.tokenizer, one["question"])
        ids = (
            generated(tiny, [prompt])[0]
            if one["strength"] == 0
            else two_steps(tiny, prompt, persona(), one["strength"])
        )
        assert one["text"] == words(tiny, ids).strip()


def test_scope_all_and_a_system_prompt_are_other_answers(
    ann: Path, tiny_checkpoint: Path, said: dict[str, Any]
) -> None:
    given = [ann, QUESTIONS[0], "--model", tiny_checkpoint, "--strength", "1", "--json", *MORE]
    alone = next(one["text"] for one in said["answers"] if one["strength"] == 1)
    assert json.loads(call(*given).stdout)["answers"][0]["text"] == alone
    whole = json.loads(call(*given, "--scope", "all").stdout)
    asked = json.loads(call(*given, "--system", "I am a statement.").stdout)
    assert len({alone, whole["answers"][0]["text"], asked["answers"][0]["text"]}) == 3
    assert (whole["scope"], asked["system"]) == ("all", "I am a statement.")


def test_without_a_terminal_answers_stand_one_after_the_other(
    ann: Path, tiny_checkpoint: Path, said: dict[str, Any]
) -> None:
    result = call(ann, *QUESTIONS, "--model", tiny_checkpoint, "--strength", "0,1,-2", *MORE)
    assert result.exit_code == 0
    shown = result.stdout
    for one in said["answers"]:
        name = {0: "plain", 1: "ann at 1", -2: "ann at -2"}[one["strength"]]
        assert f"\n{name}\n{one['text']}\n" in shown
    assert shown.index(QUESTIONS[0]) < shown.index("plain") < shown.index(QUESTIONS[1])


def drawn(width: int | None, answers: list[tuple[str, str]]) -> list[str]:
    console = Console(width=width or 80, force_terminal=width is not None, color_system=None)
    with console.capture() as capture:
        console.print(side_by_side("Who?", answers, width))
    return capture.get().splitlines()


def test_a_wide_terminal_has_columns_and_a_narrow_one_none() -> None:
    answers = [("plain", "I am a model."), ("ann at 1", "I am [bold]Ann[/bold].")]
    wide = drawn(2 * (NARROWEST + 3) + 1, answers)
    assert any("I am a model." in line and "[bold]Ann[/bold]" in line for line in wide)
    assert all(len(line) <= 2 * (NARROWEST + 3) + 1 for line in wide)
    for width in (2 * (NARROWEST + 3), None):
        narrow = drawn(width, answers)
        assert narrow.index("plain") < narrow.index("I am a model.") < narrow.index("ann at 1")


def test_what_a_model_says_commands_no_terminal() -> None:
    for width in (120, None):
        shown = "\n".join(drawn(width, [("plain", "a\x1b[2Jb\x07\r\x9b31m"), ("x", "one\ntwo")]))
        assert "\x1b[2J" not in shown and "\x07" not in shown and "\x9b" not in shown
        assert "one" in shown and "two" in shown and "one two" not in shown


def test_more_than_the_file_allows_is_tried_and_pointed_out(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    made = dataclasses.replace(persona(), fit={"max_strength": 1.5}, base_model="other", digest="")
    file = save(made, tmp_path / "mild.safetensors")
    given = [file, QUESTIONS[0], "--model", tiny_checkpoint, "--max-tokens", "2"]
    result = call(*given)
    assert result.exit_code == 0
    assert "strength 2: a server refuses more than 1.5" in result.stderr
    assert "personas were fitted on other" in result.stderr
    assert "refuses" not in call(*given, "--strength", "-1.5,0").stderr


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--strength", "0,much"], "--strength 'much'"),
        (["--strength", "nan"], "wanted numbers"),
        (["--strength", "1e999"], "wanted numbers"),
        (["--strength", " , "], "names none"),
        (["--max-tokens", "0"], "max-tokens"),
        (["--scope", "prompt"], "scope"),
        (["--device", "abacus"], "device"),
    ],
)
def test_bad_usage_ends_with_exit_2_before_a_model_is_opened(
    arguments: list[str], wanted: str, ann: Path
) -> None:
    result = call(ann, "Who?", "--model", "no/such/model", *arguments)
    assert result.exit_code == 2 and wanted in result.stderr and not result.stdout


def test_what_cannot_be_tried_is_refused(ann: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = ["--model", tiny_checkpoint]
    assert "one is empty" in call(ann, " ", *model).stderr
    assert "cannot be read" in call(tmp_path / "none", "Who?", *model).stderr
    other = save(persona(head_dim=8), tmp_path / "other.safetensors")
    result = call(other, "Who?", *model)
    assert result.exit_code == 2 and "fit it on this model" in result.stderr
    assert call(ann, *model).exit_code == 2
