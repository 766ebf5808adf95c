"""Preference pairs: every form reads alike, what is broken is named, and fits say when they mean nothing."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from palign_fit.cli import app
from palign_fit.errors import InputError
from palign_fit.inputs import pairs as reader
from palign_fit.inputs import traits
from palign_fit.inputs.pairs import Pair, Pairs, parse_pairs, read_pairs
from palign_fit.methods.pairs import data as pair_data
from palign_fit.methods.pairs.data import PairData, read_pair_data, tokenised, usable
from palign_fit.methods.pairs.fitter import HeldOut, PairSettings, fit_pairs, steer_towards
from palign_fit.model import prompts
from typer.testing import CliRunner, Result

from tests.conftest import ROOT
from vllm_palign.persona import load

EXAMPLE = ROOT / "examples" / "pairs_warm.jsonl"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def parsed(data: bytes) -> Pairs:
    return parse_pairs(io.BufferedReader(io.BytesIO(data)), "pairs")


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def outgoing_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Words of one pole of extraversion against the other, in the tiny model's vocabulary.

    Ten a pole: a random model knows no synonyms, so held-out pairs have to use words of the others.
    """
    high, low = (pole.split(", ")[:10] for pole in traits.ADJECTIVES["E"])
    middles = ["am", "feel", "like", "know", "keep", "make", "find", "try"]
    asked = [f"{one} {word}" for one in prompts.OPENINGS for word in middles]
    rng = np.random.default_rng(seed)
    return [
        Pair(
            (("user", asked[at % len(asked)]),),
            f"I {middles[at % 5]} {rng.choice(high)} and {rng.choice(high)} .",
            f"I {middles[at % 5]} {rng.choice(low)} and {rng.choice(low)} .",
        )
        for at in range(count)
    ]


def as_row(pair: Pair) -> dict[str, str]:
    return {"prompt": pair.prompt[0][1], "chosen": pair.chosen, "rejected": pair.rejected}


def write(path: Path, pairs: list[Pair]) -> Path:
    path.write_text("".join(json.dumps(as_row(one)) + "\n" for one in pairs))
    return path


# Reading

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=5, unique_by=lambda r: r[0]))
def test_text_messages_and_repeated_prompts_mean_the_same(rows: list[tuple[str, str, str]]) -> None:
    wanted = tuple(Pair((("user", p),), c, r) for p, c, r in rows if c != r)
    forms: list[list[dict[str, Any]]] = [
        [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows],
        [
            {
                "prompt": [message("user", p)],
                "chosen": [message("assistant", c)],
                "rejected": [message("user", p), message("assistant", r)],
            }
            for p, c, r in rows
        ],
    ]
    for form, listed in product(forms, (True, False)):
        text = json.dumps(form) if listed else "\n".join(map(json.dumps, form))
        if wanted:
            assert parsed(text.encode()).pairs == wanted
        else:
            with pytest.raises(InputError, match="prefers anything"):
                parsed(text.encode())


@given(st.binary(max_size=60), st.sampled_from([b"", b"[", b'{"prompt":', b"\xef\xbb\xbf["]))
def test_no_bytes_crash_the_reader(data: bytes, start: bytes) -> None:
    with pytest.raises(InputError, match="pairs"):
        parsed(start + data)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.fixed_dictionaries(dict.fromkeys(("prompt", "chosen", "rejected"), json_values)))
@limits(max_examples=200)
def test_records_of_any_shape_are_read_or_refused(record: dict[str, Any]) -> None:
    try:
        found = parsed(json.dumps(record).encode())
    except InputError as error:
        str(error).encode()  # can be printed
    else:
        assert found.pairs[0].chosen.strip() and found.pairs[0].prompt[-1][0] == "user"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "wanted an object with prompt, chosen and rejected"),
        ([1], "is 'a number'"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "prompt is empty"),
        ({"prompt": "a", "chosen": None, "rejected": "c"}, "chosen is null"),
        ({"prompt": "a", "chosen": "\ud800", "rejected": "c"}, "lone surrogate"),
        ({"prompt": "a", "chosen": "b" * 20_001, "rejected": "c"}, "20001 characters"),
        ({"prompt": [], "chosen": "b", "rejected": "c"}, "a list of 0"),
        (
            {"prompt": [message("tool", "a")], "chosen": "b", "rejected": "c"},
            "message of 'tool'",
        ),
        (
            {"prompt": [message("assistant", "a")], "chosen": "b", "rejected": "c"},
            "ends with the assistant's turn",
        ),
        (
            {"prompt": "a", "chosen": [message("user", "b")], "rejected": "c"},
            "wanted one turn of the assistant",
        ),
        ({"prompt": ["a"], "chosen": "b", "rejected": "c"}, "no object with role and content"),
    ],
)
def test_what_is_wrong_with_a_pair_is_named(record: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parsed(json.dumps(record).encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(b"x", mtime=0), "gzip-compressed"),
        (b"\xff\xfe[\x00", "not UTF-8"),
        (b"prompt,chosen,rejected\n", "not valid JSON"),
        (b"[]", "holds no pairs"),
        (b'{"prompt": "a", "prompt": "b"}', "there twice"),
    ],
)
def test_what_is_no_pairs_file_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / "p")


def test_pairs_that_prefer_nothing_are_left_out_and_counted() -> None:
    rows = [("a", "x", "y"), ("a", "x", "y"), ("b", "x", "x"), ("c", "x", "y"), ("c", "y", "x")]
    lines = [{"prompt": p, "chosen": c, "rejected": r, "score": 1} for p, c, r in rows]
    found = parsed("\n".join(map(json.dumps, lines)).encode())
    assert found.pairs == (Pair((("user", "a"),), "x", "y"),)
    notes = "\n".join(found.notes)
    for part in ("1 pair(s) are there already", "1 pair(s) have chosen", "2 pair(s) are there the"):
        assert part in notes
    assert "not used: 'score'" in notes


def test_more_pairs_than_are_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_PAIRS", 2)
    lines = [json.dumps({"prompt": "a", "chosen": "b", "rejected": str(n)}) for n in range(3)]
    with pytest.raises(InputError, match="more than 2 pairs"):
        parsed("\n".join(lines).encode())


def test_the_example_is_sound() -> None:
    found = read_pairs(EXAMPLE)
    assert len(found.pairs) >= 60 and not found.notes


# Fitting


@pytest.fixture(scope="module")
def data(tiny: Any) -> PairData:
    lines, notes = usable(tiny, outgoing_pairs(48), 0)
    assert not notes
    return read_pair_data(tiny, lines, 0)


def test_answers_end_with_their_turn_and_follow_the_prompt(tiny: Any) -> None:
    pair = Pair((("system", "Question"), ("user", "Tell me")), "I am shy .", "I am bold .")
    lines = tokenised(tiny.tokenizer, pair)
    assert tiny.tokenizer.decode(lines.prefix).endswith("Tell me <end> <assistant>")
    assert tiny.tokenizer.decode(lines.chosen) == "I am shy . <end>"
    assert tiny.tokenizer.decode(lines.rejected) == "I am bold . <end>"


def test_what_is_held_out_decides_nothing(tiny: Any, data: PairData) -> None:
    rows = data.folds != 0
    other = data.differences.copy()
    other[~rows] = -7 * other[~rows]
    changed = PairData(data.lines, other, data.covariance, data.folds)
    one, two = (steer_towards(tiny, held, rows, 4)[0] for held in (data, changed))
    assert (one.layers == two.layers).all() and (one.offsets == two.offsets).all()
    assert steer_towards(tiny, changed, np.ones(48, bool), 4)[0].offsets.tolist() != (
        one.offsets.tolist()
    )


def test_prompts_are_held_out_whole(data: PairData) -> None:
    fold_of: dict[Any, set[int]] = {}
    for line, fold in zip(data.lines, data.folds, strict=True):
        fold_of.setdefault(line.prefix, set()).add(int(fold))
    assert all(len(folds) == 1 for folds in fold_of.values())
    assert len(fold_of) == 24 and set(data.folds) == set(range(5))


def test_swapping_chosen_and_rejected_turns_the_persona_round(tiny: Any, data: PairData) -> None:
    swapped = PairData(data.lines, -data.differences, data.covariance, data.folds)
    rows = np.ones(48, bool)
    one, two = (steer_towards(tiny, held, rows, 6)[0] for held in (data, swapped))
    assert (one.layers == two.layers).all() and (one.heads == two.heads).all()
    assert np.allclose(one.offsets, -two.offsets, rtol=1e-4, atol=1e-6)


def test_held_out_figures_know_chance() -> None:
    zeros = np.zeros(10)
    sure = HeldOut.of(zeros, np.linspace(1, 2, 10))
    assert sure.accuracy == 1 and sure.chance == pytest.approx(2**-10) and not sure.weak
    mixed = HeldOut.of(zeros, np.array([1.0, -1] * 5))
    assert mixed.chance == pytest.approx(0.623, abs=1e-3) and mixed.weak
    assert HeldOut.of(np.array([-1.0, -1]), np.array([1.0, -2])).prefers_chosen == 0.5


@pytest.fixture(scope="module")
def fitted(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pairs")
    pairs = write(folder / "pairs.jsonl", outgoing_pairs(48))
    result = call(
        "pairs", "--model", tiny_checkpoint, "--pairs", pairs, "--out", folder / "warm.safetensors",
        "--heads", 4, "--device", "cpu", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout)


def test_a_clear_preference_becomes_a_persona_that_holds_out(
    fitted: tuple[Path, dict[str, Any]],
) -> None:
    folder, printed = fitted
    persona = load(folder / "warm.safetensors")
    assert (persona.name, persona.method) == ("warm", "palign-pairs")
    assert printed["digest"] == persona.digest and printed["fit"] == persona.fit
    held = persona.fit["held_out"]
    assert held["accuracy"] > 0.8 and held["change"] > 0 and persona.fit["weak"] is False
    assert persona.fit["perplexity"] <= 1.15 * persona.fit["perplexity_plain"]
    shown = " ".join(call("inspect", folder / "warm.safetensors").stdout.split())
    assert "48 of 48 given" in shown and "the right way (chance 0.5)" in shown


def test_the_same_pairs_give_the_same_bytes(tiny: Any, fitted: tuple[Path, dict[str, Any]]) -> None:
    again = fit_pairs(tiny, Pairs(tuple(outgoing_pairs(48))), PairSettings("warm", heads=4))
    assert again.to_bytes() == (fitted[0] / "warm.safetensors").read_bytes()


def test_pairs_without_a_common_direction_are_weak_and_say_so(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    pairs = [
        one if rng.random() < 0.5 else Pair(one.prompt, one.rejected, one.chosen)
        for one in outgoing_pairs(40)
    ]
    out = tmp_path / "none.safetensors"
    command = ["pairs", "--model", tiny_checkpoint, "--out", out, "--heads", 4, "--alpha", 1]
    command += ["--pairs", write(tmp_path / "p.jsonl", pairs)]
    result = call(*command)
    assert result.exit_code == 0 and "WEAK" in result.stderr and "chance" in result.stderr
    assert load(out).fit["weak"] is True and load(out).alpha == 1
    assert call(*command, "--fail-weak").exit_code == 3


def test_a_large_file_is_sampled_and_it_is_said(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_data, "MAX_USED", 20)
    lines, notes = usable(tiny, outgoing_pairs(48), 0)
    assert len(lines) == 20 and "20 of 48 pairs are used" in notes[0]
    few = [
        replace(pair, prompt=outgoing_pairs(3)[at % 3].prompt)
        for at, pair in enumerate(outgoing_pairs(48))
    ]
    assert any(
        "3 different prompts, too few to hold some out" in one for one in usable(tiny, few, 0)[1]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heads", "13"], "has 12 heads in all"),
        (["--alpha", "x"], "wanted auto or a number"),
        (["--seed", "-1"], "seed is -1"),
        (["--name", "../x"], "--name"),
        (["--pairs", "none.jsonl"], "cannot be read"),
        (["--out", "none/x.safetensors"], "a folder that is there"),
        (["--model", "no-such-folder/x/y"], "cannot be opened"),
    ],
)
def test_bad_options_end_with_exit_2_and_write_nothing(
    options: list[str], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    pairs = write(tmp_path / "p.jsonl", outgoing_pairs(20))
    result = call(
        "pairs", "--model", tiny_checkpoint, "--pairs", pairs, "--out", tmp_path / "o", *options
    )
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert [one.name for one in tmp_path.iterdir()] == ["p.jsonl"]


def test_too_few_pairs_and_long_prompts_are_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match="9 usable pairs, wanted at least 10"):
        usable(tiny, outgoing_pairs(9), 0)
    long = [Pair((("user", "Tell me " * 400),), "I am shy .", "I am bold .")]
    lines, notes = usable(tiny, outgoing_pairs(12) + long, 0)
    assert len(lines) == 12 and "1 pairs left out: prompts over 256 tokens" in notes[0]
