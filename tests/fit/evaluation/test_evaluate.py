from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from palign_fit.cli import app
from palign_fit.commands.measuring import check_made_for
from palign_fit.errors import InputError
from palign_fit.evaluation import fitting, tables, texts
from palign_fit.evaluation import measures as ms
from palign_fit.evaluation.conditions import (
    CONDITIONS,
    check_learned,
    check_prompts,
    settings,
    system_prompt,
)
from palign_fit.evaluation.intervals import Bootstrap
from palign_fit.evaluation.split import Sheet, read_train_items, split, usual_answers
from palign_fit.inputs.answers import Subject
from palign_fit.model.chats import Chats
from palign_fit.model.likelihood import in_rows, reader_for
from palign_fit.model.prompts import chat_prefix
from palign_fit.model.token_tree import packed
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.fit.conftest import answer_sheet
from vllm_palign.directions.inventory import Inventory, Item
from vllm_palign.persona import Persona, load, save

CHEAP = ["--measures", "statements,drift", "--device", "cpu"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def refused(result: Result) -> str:
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert result.stdout == "" and "Traceback" not in result.stderr
    return result.stderr


def person(inventory: Inventory, seed: int, name: str = "ann") -> Subject:
    values = np.random.default_rng(seed).integers(1, 6, len(inventory.items))
    return Subject(name, values.astype(float))


def made_from(digest: str, **fit: Any) -> Persona:
    return Persona(
        name="ann",
        layers=np.array([1], np.int32),
        heads=np.array([2], np.int32),
        offsets=np.ones((1, 16), np.float32),
        alpha=1.0,
        base_model="tiny-fit",
        num_layers=3,
        num_heads=4,
        head_dim=16,
        fit={"inventory": {"digest": digest}, **fit},
    )


# What was held out


def test_what_went_into_a_persona_is_never_held_out(inventory: Inventory) -> None:
    fitted, listed = ["q1", "q2"], ["q2", "q3"]
    sheet = split(
        person(inventory, 0), inventory, listed, made_from(inventory.digest, items=fitted)
    )
    held = {item.id for item, used in zip(inventory.items, sheet.held_out, strict=True) if used}
    assert held == {item.id for item in inventory.items} - {"q1", "q2", "q3"}
    assert not (sheet.train & sheet.held_out).any() and not sheet.seen


def test_answers_that_were_all_fitted_are_measured_and_marked_as_seen(inventory: Inventory) -> None:
    everything = [item.id for item in inventory.items]
    for persona in (made_from(inventory.digest, items=everything), made_from(inventory.digest)):
        sheet = split(person(inventory, 0), inventory, None, persona)
        assert sheet.seen and sheet.held_out.all() and sheet.train.all()


def test_train_items_stand_in_for_a_file_that_does_not_say(inventory: Inventory) -> None:
    silent = made_from(inventory.digest)
    sheet = split(person(inventory, 0), inventory, ["q1"], silent)
    assert not sheet.seen and sheet.train.sum() == 1


def test_a_persona_of_another_inventory_saw_none_of_these_items(inventory: Inventory) -> None:
    other = made_from("0" * 64, items=["x1"])
    assert not split(person(inventory, 0), inventory, ["q1"], other).seen


@pytest.mark.parametrize(
    "text", ["q1\n\nq7\n", '["q1", "q7"]', '{"train_index": ["q1", "q7"], "test_index": ["q2"]}']
)
def test_train_items_are_read_in_three_forms(
    text: str, inventory: Inventory, tmp_path: Path
) -> None:
    (tmp_path / "t").write_text(text)
    assert read_train_items(tmp_path / "t", inventory) == {"q1", "q7"}


def test_a_prompt_is_not_written_of_nothing(inventory: Inventory) -> None:
    other = made_from("0" * 64, items=["x1"])
    sheets = [split(person(inventory, 0), inventory, None, other)]
    with pytest.raises(InputError, match=r"1 subjects have no training answers.* 'ann'"):
        check_prompts(["plain", "personality-prompt"], sheets)
    check_prompts(["plain", "palign"], sheets)
    for learns in ("few-shot", "palign"):
        with pytest.raises(InputError, match=f"^{learns}: what was held out is unknown"):
            check_learned(["plain", learns], None, None)
    check_learned(["plain"], None, None)
    check_learned(["palign"], None, {"q1"})


def test_numbers_in_a_split_file_are_papi_items(tmp_path: Path) -> None:
    items = Inventory("papi", tuple(Item(one, "like this", "O", "f", 1) for one in ("i1", "i12")))
    (tmp_path / "t").write_text('{"train_index": [12]}')
    assert read_train_items(tmp_path / "t", items) == {"i12"}


def test_the_usual_answer_leaves_the_subject_out(inventory: Inventory) -> None:
    answers = np.random.default_rng(0).integers(1, 6, (10, len(inventory.items))).astype(float)
    every = np.ones(len(inventory.items), bool)
    sheets = [
        Sheet(Subject(f"s{at}", line), every, every, False) for at, line in enumerate(answers)
    ]
    usual, measured = usual_answers(sheets, inventory)
    assert measured
    np.testing.assert_allclose(usual[3], np.delete(answers, 3, 0).mean(0))
    assert not usual_answers(sheets[:9], inventory)[1]


# Measures


def test_agreeing_with_everything_and_constant_answers_win_nothing() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(20, 60))
    rows = np.ones_like(wanted, bool)
    same = np.full_like(wanted, 0.3)
    assert (ms.alignment(same, wanted, rows) == 0).all()
    pairs = ms.identification(same, wanted, rows)
    assert np.nanmin(pairs) == np.nanmax(pairs) == 0.5
    shared = np.broadcast_to(rng.normal(size=60), wanted.shape)
    assert np.nanmean(ms.identification(shared, wanted, rows)) == 0.5


def test_what_carries_the_person_is_found_beside_a_large_shared_change() -> None:
    rng = np.random.default_rng(1)
    wanted = rng.normal(size=(12, 80))
    rows = rng.random(wanted.shape) < 0.8
    change = 0.1 * wanted + 5 * rng.normal(size=80)
    assert abs(ms.alignment(change, wanted, rows).mean()) < 0.2
    assert ms.alignment(ms.centred(change), wanted, rows).min() > 0.9
    assert np.nanmean(ms.identification(change, wanted, rows)) == 1


def test_pairs_are_compared_over_the_items_both_answered() -> None:
    rng = np.random.default_rng(2)
    change, wanted = rng.normal(size=(2, 8, 30))
    rows = rng.random(change.shape) < 0.6
    got = ms.identification(change, wanted, rows)
    for i in range(8):
        for j in range(8):
            both = rows[i] & rows[j]

            def r(a: int, b: int, both: Any = both) -> float:
                return float(np.corrcoef(change[a][both], wanted[b][both])[0, 1])

            wins = r(i, i) + r(j, j) > r(i, j) + r(j, i)
            assert np.isnan(got[i, j]) if i == j else got[i, j] == wins


def test_errors_are_by_trait_and_summed() -> None:
    answers = np.array([[1.0, 5.0, 3.0, np.nan]])
    rows = np.isfinite(answers)
    traits = {"O": np.array([1, 1, 0, 0], bool), "C": np.array([0, 0, 1, 1], bool)}
    errors = ms.trait_errors(np.full((1, 4), 3.0), answers, rows, traits)
    assert {trait: float(line[0]) for trait, line in errors.items()} == {"O": 2.0, "C": 0.0}
    assert ms.summed(errors).tolist() == [2.0]


def test_an_answer_is_told_from_the_likelihood_with_a_slope_that_others_gave() -> None:
    rng = np.random.default_rng(3)
    deviation = rng.normal(size=(12, 60)) / 3
    usual = np.full_like(deviation, 3.0)
    rows = rng.random(deviation.shape) < 0.7
    # Everybody's likelihood moves by a fifth of the deviation, and some by a constant beside.
    middle = np.array([line[used].mean() for line, used in zip(deviation, rows, strict=True)])
    change = (deviation - middle[:, None]) / 5 + np.arange(12)[:, None]
    told = ms.calibrated(change, deviation, usual, rows)
    assert told[rows] == pytest.approx((usual + deviation - middle[:, None])[rows])
    # One's own answers have no part in it.
    other = deviation.copy()
    other[4] = -other[4]
    assert ms.calibrated(change, other, usual, rows)[4] == pytest.approx(told[4])
    # Nothing said, one subject alone, and beyond the scale.
    assert (ms.calibrated(0 * change, deviation, usual, rows) == usual).all()
    assert (ms.calibrated(change[:1], deviation[:1], usual[:1], rows[:1]) == usual[:1]).all()
    far = ms.calibrated(change, 9 * deviation, usual, rows)
    assert far.min() == 1 and far.max() == 5


@given(st.integers(2, 40), st.integers(0, 2**31))
def test_an_interval_holds_the_mean_and_repeats(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=count)
    one, two = (Bootstrap.draw(count, seed, 200).mean(values) for _ in range(2))
    assert one.as_json() == two.as_json() and one.interval is not None
    low, high = one.interval
    assert values.min() - 1e-9 <= low <= high <= values.max() + 1e-9
    assert one.mean == pytest.approx(values.mean())


def test_a_bootstrap_interval_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = Bootstrap.draw(400, 0).mean(values)
    assert found.interval is not None
    low, high = found.interval
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_text_of_people_is_shown_as_it_is() -> None:
    """A system prompt stands in titles and cells: "[/INST]" is no markup there, and "|" no column."""
    system = "Be kind. [/INST] a|b"
    mean = {"mean": 0.5, "low": None, "high": None, "n": 1}
    dose = {"condition": "palign", "system": system, "reader": "[r]", "rho": mean}
    case = {"condition": "plain", "strength": None, "system": system}
    case["voice"] = dict.fromkeys(("machine", "repeated", "words"), mean)
    answers = {
        "questions": {"asked": 1, "part": "test"}, "cases": [case], "readers": [], "dose_response": [dose],
    }  # fmt: skip
    report = {
        "model": "m", "backend": {"kind": "here"}, "inventory": {"name": "i"}, "usual_answers": "typical",
        "subjects": [{"held_out_items": 1, "train_items": 1}], "settings": {"subjects": "all", "strength": 1},
        "seconds": 1, "conditions": {}, "baselines": {}, "speech": {"answers": answers}, "warnings": [],
    }  # fmt: skip
    told = StringIO()
    Console(file=told, width=200).print(tables.terminal(report))
    assert told.getvalue().count("[/INST]") == 2 and "[r]" in told.getvalue()
    rows = [line for line in tables.markdown(report).splitlines() if line.startswith("| palign")]
    assert rows == [r"| palign | Be kind. [/INST] a\|b | [r] | 0.500 |"]


def test_who_was_left_nothing_held_out_brings_nothing_into_what_all_share(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [item.id for item in inventory.items[:60]]
    whole = [person(inventory, seed, f"p{seed}") for seed in range(2)]
    few = np.where(np.arange(len(inventory.items)) < 65, whole[0].agreement, np.nan)
    sheets = [split(one, inventory, known, None) for one in (*whole, Subject("few", few))]
    assert [sheet.seen for sheet in sheets] == [False, False, True]
    seen = []

    def digest(model: Any, checkpoint: Any, inventory: Any, used: Any, settings: Any) -> None:
        seen.append(used)
        raise StopIteration

    monkeypatch.setattr(fitting, "shared_digest", digest)
    monkeypatch.setattr(
        fitting.ModelCache, "of", lambda model, cache: SimpleNamespace(checkpoint="")
    )
    with pytest.raises(StopIteration):
        fitting.fit_learners(
            SimpleNamespace(num_layers=2, num_heads=2),
            sheets,
            inventory,
            "palign",
            0,
            None,
            None,  # type: ignore[arg-type]
        )
    assert seen[0].sum() == 60


# Reading the model


def test_packed_continuations_are_scored_as_alone(tiny: Any) -> None:
    assert reader_for(tiny) is packed
    rng = np.random.default_rng(0)
    size = tiny.model.config.vocab_size
    lines = [rng.integers(0, size, rng.integers(1, 30)).tolist() for _ in range(60)]
    lines += [lines[0][:1], lines[3], [*lines[3], 5]]
    prefix = rng.integers(0, size, 20).tolist()
    for mine, alone in zip(packed(tiny, prefix, lines), in_rows(tiny, prefix, lines), strict=True):
        np.testing.assert_allclose(mine, alone, atol=2e-5)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "bloom"])
def test_other_architectures_are_scored_right_or_in_rows(family: str) -> None:
    """Sliding windows and learned positions work packed; Bloom has no positions and goes in rows."""
    import torch
    from palign_fit.model.model import OpenedModel
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    small: dict[str, Any] = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "initializer_range": 0.5}
    if family == "gemma3_text":
        small |= {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
        small |= {"intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 16}
    config = AutoConfig.for_model(family, **small)
    loaded = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model = OpenedModel(loaded, None, (), 2, 16, family)
    rng = np.random.default_rng(0)
    prefix, *lines = (rng.integers(0, 90, n).tolist() for n in (14, 1, 6, 12, 3))
    got = reader_for(model)(model, prefix, lines)
    assert (reader_for(model) is packed) == (family != "bloom")
    for line, mine in zip(lines, got, strict=True):
        with torch.inference_mode():
            logits = loaded(torch.tensor([[*prefix, *line]])).logits[0, len(prefix) - 1 : -1]
        alone = logits.log_softmax(-1)[torch.arange(len(line)), torch.tensor(line)]
        np.testing.assert_allclose(mine, alone.numpy(), atol=1e-4)


# Prompts


def test_prompts_hold_training_answers_only(inventory: Inventory) -> None:
    subject = person(inventory, 0)
    train = np.zeros(len(inventory.items), bool)
    train[:40] = True
    sheet = Sheet(subject, train, ~train, False)
    few_shot = system_prompt("few-shot", sheet, inventory)
    assert few_shot is not None
    for item, used in zip(inventory.items, train, strict=True):
        assert (f"I {item.text}:" in few_shot) == used
    altered = Subject("ann", np.where(train, subject.agreement, 1.0))
    for kind in ("few-shot", "personality"):
        same = system_prompt(kind, Sheet(altered, train, ~train, False), inventory)
        assert same == system_prompt(kind, sheet, inventory)
    (plain,) = settings(CONDITIONS["plain"], [sheet], inventory, {})
    assert plain.system is None and plain.persona_id is None


def test_a_personality_is_described_from_usual_scores() -> None:
    high, usual, low = (texts.describe({"E": score})[0] for score in (4.6, 3.3, 2.9))
    assert high == "very talkative, outgoing and sociable"
    assert low == "rather quiet, shy and reserved"
    assert "most people" in usual


def test_a_template_without_a_system_turn_gets_the_text_before_the_users(tiny: Any) -> None:
    import copy

    prompt = "Talk as talkative people."
    own = tiny.tokenizer
    ids = chat_prefix(own, "I am", prompt)
    assert ids == own(f"<system> {prompt} <end> <user> I am <end> <assistant>")["input_ids"]
    refusing = copy.copy(own)
    refusing.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "<{{ m.role }}> {{ m.content }} <end> {% endfor %}<assistant> "
    )
    silent = copy.copy(own)
    silent.chat_template = "<user> {{ messages[-1].content }} <end> <assistant> "
    for tokenizer in (refusing, silent):
        ids = chat_prefix(tokenizer, "I am", prompt)
        assert ids == own(f"<user> {prompt} I am <end> <assistant>")["input_ids"]


# The command


@pytest.fixture(scope="module")
def people(inventory: Inventory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three random subjects; the last 95 of 120 items are left to be held out."""
    folder = tmp_path_factory.mktemp("evaluate")
    names = ["ann", "ben", "cleo"]
    rows = [{"id": name, "answers": answer_sheet(inventory, n)} for n, name in enumerate(names)]
    (folder / "answers.json").write_text(json.dumps(rows))
    (folder / "train.txt").write_text("\n".join(item.id for item in inventory.items[:25]))
    return folder


def test_every_condition_and_measure_is_in_the_report(
    people: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    result = call(
        "evaluate", "--model", tiny_checkpoint, "--answers", people / "answers.json",
        "--train-items", people / "train.txt", "--conditions", ",".join(CONDITIONS),
        "--openings", 2, "--device", "cpu", "--json", "--markdown", tmp_path / "report.md",
    )  # fmt: skip
    assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads(result.stdout)
    assert (report["format"], report["format_version"]) == ("palign.evaluation", 1)
    assert list(report["conditions"]) == list(CONDITIONS)
    assert [one["held_out_items"] for one in report["subjects"]] == [95, 95, 95]
    assert report["seen_in_fitting"] == 0 and not report["warnings"]
    for name, one in report["conditions"].items():
        assert len(one["measures"]) == 7
        for measure in one["measures"].values():
            assert len(measure["per_subject"]) == 3 and measure["n"] == 3, (name, measure)
            assert measure["low"] <= measure["mean"] <= measure["high"]
        assert len(one["traits"]["O"]["from_statements"]) == 3
    plain = report["conditions"]["plain"]
    assert plain["measures"]["alignment"]["mean"] == 0
    assert plain["measures"]["perplexity_ratio"]["mean"] == 1
    assert plain["traits"]["E"]["nats"] == [0, 0, 0]
    palign = report["conditions"]["palign"]
    assert palign["against_plain"]["alignment"]["mean"] == palign["measures"]["alignment"]["mean"]
    assert set(report["baselines"]) == {
        "always-3", "constant", "own-mean", "own-trait-means", "own-trait-medians", "usual"
    }  # fmt: skip
    # Who changes nothing tells the usual answers.
    usual = report["baselines"]["usual"]["measures"]["error"]
    assert plain["measures"]["error"]["per_subject"] == usual["per_subject"]
    assert plain["measures"]["rank"]["per_subject"] == [1, 1, 1]
    assert report["published"]["error"]["PAS"] == 4.41
    text = (tmp_path / "report.md").read_text()
    assert all(f"| {name} |" in text for name in CONDITIONS)
    assert "| (published: PAS) | - | - | - | - | - | 4.41 |" in text


def test_personas_fitted_for_an_evaluation_are_kept_and_the_next_one_fits_nobody(
    people: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Each run fitted everybody anew, without the cache, and threw the personas away."""
    ask = ["evaluate", "--model", tiny_checkpoint, "--answers", people / "answers.json", *CHEAP]
    ask += ["--train-items", people / "train.txt", "--conditions", "palign", "--cache", tmp_path]
    first = json.loads(call(*ask, "--json").stdout)
    folder = Path(first["fitted_in"]["palign"])
    assert folder.is_relative_to(tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(written) == {"ann.safetensors", "ben.safetensors", "cleo.safetensors"}
    assert [one["persona"]["digest"] for one in first["subjects"]] == [
        load(folder / f"{one['id']}.safetensors").digest for one in first["subjects"]
    ]
    (folder / "ben.safetensors").unlink()
    again = call(*ask, "--json")
    assert {**json.loads(again.stdout), "seconds": 0} == {**first, "seconds": 0}
    now = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in written if now[name] != written[name]} == {"ben.safetensors"}
    assert str(folder) in "".join(call(*ask).stdout.split())


def test_without_a_cache_an_evaluation_keeps_nothing(
    people: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    result = call(
        "evaluate", "--model", tiny_checkpoint, "--answers", people / "answers.json", *CHEAP,
        "--train-items", people / "train.txt", "--conditions", "palign", "--subjects", 1,
        "--cache", tmp_path / "cache", "--no-cache", "--json",
    )  # fmt: skip
    assert result.exit_code == 0 and json.loads(result.stdout)["fitted_in"] == {}
    assert not (tmp_path / "cache").exists()


def test_given_personas_are_measured_on_what_they_never_saw(
    people: Path, inventory: Inventory, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    train = (people / "train.txt").read_text().split()
    rows = json.loads((people / "answers.json").read_text())[:2]
    (tmp_path / "two.json").write_text(json.dumps(rows))
    for row in rows:
        row["answers"] = {item: value for item, value in row["answers"].items() if item in train}
        made = made_from(inventory.digest, items=train, alignment=0.125)
        save(replace(made, name=row["id"], digest=""), tmp_path / f"{row['id']}.safetensors")
    (tmp_path / "half.json").write_text(json.dumps(rows))
    ask = ["evaluate", "--model", tiny_checkpoint, "--personas", tmp_path, *CHEAP]
    ask += ["--conditions", "palign", "--answers"]
    shown = call(*ask, tmp_path / "two.json")
    assert shown.exit_code == 0 and "NOT HELD OUT" not in shown.stdout, shown.output
    assert "25 training answers, 95 measured" in shown.stdout and "identification" in shown.stdout
    seen = call(*ask, tmp_path / "half.json")
    assert "NOT HELD OUT" in seen.stdout and "mean 0.125" in seen.stdout
    report = json.loads(call(*ask, tmp_path / "half.json", "--json").stdout)
    assert report["seen_in_fitting"] == 2
    assert report["subjects"][0]["persona"]["recorded_alignment"] == 0.125


def test_personas_of_another_shape_are_refused_before_anything_is_measured(
    people: Path, inventory: Inventory, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (row, *_) = json.loads((people / "answers.json").read_text())
    (tmp_path / "one.json").write_text(json.dumps([row]))
    wide = replace(
        made_from(inventory.digest, items=[]),
        head_dim=32,
        offsets=np.ones((1, 32), np.float32),
        base_model="org/wide",
        digest="",
    )
    save(wide, tmp_path / f"{row['id']}.safetensors")
    ask = ["evaluate", "--model", tiny_checkpoint, "--personas", tmp_path, *CHEAP]
    ask += ["--answers", tmp_path / "one.json", "--conditions", "plain"]
    said = refused(call(*ask))
    assert "fitted on 'org/wide'" in said and "fit it on this model" in said


def test_personas_of_another_model_of_the_same_shape_are_pointed_out(tiny: Any) -> None:
    own = made_from("d")
    assert check_made_for(tiny, [own, replace(own, base_model="org/tiny-fit", digest="")]) == []
    (note,) = check_made_for(tiny, [own, replace(own, base_model="org/other", digest="")])
    assert "fitted on other, measured is tiny-fit" in note


def test_one_model_under_two_paths_is_one_model(tiny: Any) -> None:
    plain = Chats(tiny).plain
    record = {"perplexity_plain": float(f"{plain:.6g}"), "dtype": "float32"}
    moved = replace(made_from("d"), base_model="org/renamed", digest="")
    assert check_made_for(tiny, [replace(moved, fit=moved.fit | record)]) == []
    rounded = record | {"perplexity_plain": 1.005 * plain}
    assert check_made_for(tiny, [replace(moved, fit=moved.fit | rounded)])
    rounded["dtype"] = "bfloat16"
    assert check_made_for(tiny, [replace(moved, fit=moved.fit | rounded)]) == []
    snapshot = "/home/me/.cache/hub/models--org--tiny-fit/snapshots/0a1b2c"
    assert check_made_for(tiny, [replace(moved, base_model=snapshot)]) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "what was held out is unknown"),
        (["--personas", "nowhere"], "ann.safetensors"),
        (["--train-items", "nowhere"], "cannot be read"),
        (["--conditions", "magic"], "'magic' is unknown"),
        (["--measures", "mood"], "'mood' is unknown"),
        (["--measures", ","], "no condition or no measure"),
        (["--openings", "9"], "openings is 9"),
        (["--subjects", "0"], "--subjects 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--strength", "nan"], "strength is nan"),
        (["--server", "ftp://x"], "wanted a URL"),
        (["--server", "http://me:secret@x"], "without user and password"),
    ],
)
def test_bad_options_end_with_exit_2(
    options: list[str], message: str, people: Path, tiny_checkpoint: Path
) -> None:
    arguments = ["--model", tiny_checkpoint, "--answers", people / "answers.json", *options]
    said = refused(call("evaluate", *arguments))
    assert message in said and "secret" not in said


def test_a_report_that_cannot_be_written_is_refused_before_any_work(
    people: Path, tmp_path: Path
) -> None:
    for target in (tmp_path, tmp_path / "no" / "report.md"):
        result = call("evaluate", "--model", "unused", "--answers", people / "answers.json",
                      "--markdown", target)  # fmt: skip
        assert "--markdown" in refused(result)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["evaluate", "judge"])
def test_measuring_commands_have_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    assert f"Example: palign-fit {command}" in result.output and "--json" in result.output
