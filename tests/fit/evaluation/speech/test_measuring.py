from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from palign_fit.cli import app
from palign_fit.evaluation.intervals import Estimate
from palign_fit.evaluation.speech import damage, script
from palign_fit.evaluation.speech.answers import machine, repeated
from palign_fit.evaluation.speech.measuring import at_equal_damage
from palign_fit.evaluation.speech.plan import Case
from palign_fit.evaluation.speech.recognition import Recognition
from palign_fit.inputs.inventory import built_in
from palign_fit.model.speaking import Speaker
from typer.testing import CliRunner, Result

from tests.fit.conftest import answer_sheet

whole_chats, whole_facts = script.chats(), script.facts()

NAMES = ["ann", "ben", "cleo"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def asked(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Three random people; 95 of 120 items are held out."""
    folder = tmp_path_factory.mktemp("speech")
    inventory = built_in()
    rows = [{"id": name, "answers": answer_sheet(inventory, n)} for n, name in enumerate(NAMES)]
    (folder / "answers.json").write_text(json.dumps(rows))
    (folder / "train.txt").write_text("\n".join(item.id for item in inventory.items[:25]))
    return [
        "evaluate", "--model", tiny_checkpoint, "--device", "cpu", "--json",
        "--answers", folder / "answers.json", "--train-items", folder / "train.txt",
        "--conditions", "personality-prompt,palign,palign+prompt",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def answers(
    asked: list[object], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("kept")
    result = call(
        *asked, "--measures", "answers", "--questions", "test:1", "--strengths", "-1,2",
        "--cache", folder, "--markdown", folder / "report.md",
    )  # fmt: skip
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout), folder


def test_every_case_is_in_the_report(answers: tuple[dict[str, Any], Path]) -> None:
    report, folder = answers
    found = report["speech"]["answers"]
    assert found["readers"] == ["tiny-fit"] and found["questions"]["asked"] == 5
    named = [(one["condition"], one["strength"]) for one in found["cases"] if not one["system"]]
    assert named == [
        ("plain", None), ("personality-prompt", None), ("palign", -1), ("palign", 2),
        ("palign+prompt", -1), ("palign+prompt", 2),
    ]  # fmt: skip
    assert len(found["cases"]) == 12
    plain = found["cases"][0]["readers"]["tiny-fit"]
    assert plain["profiles"] == [[0] * 5] * 3
    assert plain["r"]["mean"] == 0 and plain["identification"]["mean"] == 0.5
    for case in found["cases"]:
        read = case["readers"]["tiny-fit"]
        assert len(read["profiles"]) == 3 and set(read["traits"]) == set("OCEAN")
        assert (read["against_prompt"] is not None) == case["condition"].startswith("palign")
    assert {(one["condition"], tuple(one["strengths"])) for one in found["dose_response"]} == {
        ("palign", (-1, 0, 2)), ("palign+prompt", (-1, 0, 2))
    }  # fmt: skip
    # Plain speaks once, five cases in three people's names, under each of two system prompts.
    assert len(found["said"]) == 2 * 5 * (1 + 5 * 3)
    text = (folder / "report.md").read_text()
    assert "| palign -1 |" in text and "machine's voice" in text


def test_figures_of_the_voice_are_those_of_what_was_said(
    answers: tuple[dict[str, Any], Path],
) -> None:
    found = answers[0]["speech"]["answers"]
    for case in found["cases"]:
        said = [
            one["answer"]
            for one in found["said"]
            if all(one[key] == case[key] for key in ("condition", "strength", "system"))
        ]
        for name, of in (("machine", machine), ("repeated", repeated)):
            wanted = sum(map(of, said)) / len(said)
            assert case["voice"][name]["mean"] == pytest.approx(wanted, abs=1e-5)
    steered = {
        (one["subject"], one["answer"]) for one in found["said"] if one["condition"] == "palign"
    }
    assert len({text for _, text in steered}) > 5


def test_a_second_run_asks_and_reads_nothing_anew(
    asked: list[object], answers: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, folder = answers
    calls: list[int] = []
    own = Speaker.answers

    def counted(self: Any, lines: Any, *others: Any) -> Any:
        calls.append(len(lines))
        return own(self, lines, *others)

    monkeypatch.setattr(Speaker, "answers", counted)
    ask = [*asked, "--measures", "answers", "--questions", "test:1", "--cache", folder]
    again = json.loads(call(*ask, "--strengths", "-1,2").stdout)
    assert calls == [] and again["speech"] == report["speech"]
    more = json.loads(call(*ask, "--strengths", "2,3", "--system", "").stdout)
    assert sum(calls) == 2 * 3 * 5
    kept = {**report["speech"]["answers"]["cases"][3]}
    assert more["speech"]["answers"]["cases"][2] == kept


def test_damage_and_fading_are_measured_at_the_same_strengths(
    asked: list[object], answers: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = answers
    monkeypatch.setattr(damage, "chats", lambda: whole_chats[::10])
    monkeypatch.setattr(damage, "facts", lambda: whole_facts[::20])
    ask = [
        *asked,
        "--measures",
        "answers,damage,fading",
        "--questions",
        "test:1",
        "--cache",
        folder,
    ]
    ask += ["--strengths", "-1,2", "--turns", 2, "--markdown", folder / "all.md"]
    result = call(*ask)
    assert result.exit_code == 0, (result.output, result.exception)
    speech = json.loads(result.stdout)["speech"]
    assert [(one["condition"], one["strength"]) for one in speech["damage"]] == [
        ("plain", None), ("personality-prompt", None), ("palign", -1), ("palign", 2),
        ("palign+prompt", -1), ("palign+prompt", 2),
    ]  # fmt: skip
    for one in speech["damage"]:
        assert set(one["kl"]) == {"all", "english", "german", "code"}
        assert set(one["right"]) == {"all", "fact", "sum", "format"}
        still = one["condition"] == "plain"
        assert (one["kl"]["all"]["mean"] < 1e-6) == still == (one["same_top"]["all"]["mean"] == 1)
    (equal,) = (one for one in speech["at_equal_damage"] if not one["system"])
    assert equal["condition"] == "palign" and 0 < equal["kl"] <= equal["prompt_kl"]
    fading = speech["fading"]
    assert fading["turns"] == [2] and fading["scripts"] == {"facts": 2, "kind": 2, "provoker": 2}
    assert [(one["condition"], one["strength"]) for one in fading["cases"]] == [
        ("personality-prompt", None), ("palign", -1), ("palign", 2),
        ("palign+prompt", -1), ("palign+prompt", 2),
    ]  # fmt: skip
    for case in fading["cases"]:
        (turn,) = case["readers"]["tiny-fit"]["turns"]
        assert set(turn) == {"turn", "r", "identification", "rank", "traits"}
        # One reading fades neither more nor less.
        assert case["readers"]["tiny-fit"]["r_last_to_first"]["mean"] is None
    assert "all.svg" in (folder / "all.md").read_text()
    picture = (folder / "all.svg").read_text()
    assert picture.startswith("<svg") and "palign+prompt" in picture
    assert "r by turn of a conversation" in (folder / "all.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strengths", "much"], "--strengths 'much'"),
        (["--strengths", "0,1"], "--strengths 0"),
        (["--questions", "exam"], "--questions 'exam'"),
        (["--questions", "test:no"], "--questions 'test:no'"),
        (["--questions", "test:0"], "--questions 0"),
        (["--turns", "1"], "--turns 1"),
    ],
)
def test_what_cannot_be_asked_ends_with_exit_2(
    options: list[str], message: str, asked: list[object]
) -> None:
    result = call(*asked, "--measures", "answers", *options)
    assert result.exit_code == 2 and message in result.stderr, result.output


def figure(value: float) -> Estimate:
    return Estimate(value, np.array([value - 0.1, value + 0.1]), 9)


def row(kl: dict[float, float], prompt_kl: float) -> dict[str, Any]:
    """Of palign with r 0.2 a strength, and a prompt with r 0.3; ``kl`` by strength."""
    damage = {Case("personality-prompt", None, ""): {"kl": {"all": figure(prompt_kl)}}}
    found = {Case("personality-prompt", None, ""): {"me": read(0.3)}}
    for strength, cost in kl.items():
        damage[Case("palign", strength, "")] = {"kl": {"all": figure(cost)}}
        found[Case("palign", strength, "")] = {"me": read(0.2 * strength)}
    (one,) = at_equal_damage(found, damage)
    return one


def read(r: float) -> Recognition:
    return Recognition(figure(r), {}, figure(0.5), figure(0.5))


def test_r_is_drawn_out_between_strengths_over_the_root_of_what_they_cost() -> None:
    one = row({1.0: 0.01, 3.0: 0.09}, 0.04)
    assert one["kl"] == one["prompt_kl"] == 0.04
    assert one["r"]["mean"] == pytest.approx(0.4)
    assert one["r_minus_prompt"]["mean"] == pytest.approx(0.1)
    assert one["r_minus_prompt"]["low"] == pytest.approx(0.1)


def test_where_the_prompt_costs_less_than_any_strength_it_is_drawn_from_nothing() -> None:
    one = row({2.0: 0.04}, 0.01)
    assert one["r"]["mean"] == pytest.approx(0.2)


def test_where_the_prompt_costs_more_than_any_strength_the_most_costly_one_counts() -> None:
    one = row({1.0: 0.01, 2.0: 0.04, -2.0: 0.5}, 0.3)
    assert (one["kl"], one["prompt_kl"]) == (0.04, 0.3)
    assert one["r"]["mean"] == pytest.approx(0.4)


def test_without_the_prompt_or_its_cost_there_is_nothing_to_compare_with() -> None:
    assert at_equal_damage({}, {}) == []
    unknown = {Case("personality-prompt", None, ""): {"kl": {"all": figure(float("nan"))}}}
    assert at_equal_damage({}, unknown) == []
