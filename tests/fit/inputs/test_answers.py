from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from palign_fit.errors import InputError
from palign_fit.inputs.answers import Answers, parse_answers, template
from palign_fit.inputs.inventory import parse_inventory

INVENTORY = parse_inventory(
    "id,text,trait,facet,key\ni1,talk,E,f,+\ni2,hide,E,f,-\ni3,worry,N,f,+\n",
    source="inv",
    name="inv",
)
ANN = {"id": "ann", "answers": {"i1": 4, "i2": None, "i3": 0}}
BEN = {"id": "ben", "answers": {"i3": 5}}


def parse(text: str) -> Answers:
    return parse_answers(text, INVENTORY, source="answers")


def as_lists(subjects: Answers) -> list[tuple[str, list[Any]]]:
    return [(one.id, [None if np.isnan(v) else v for v in one.agreement]) for one in subjects]


WANTED = [("ann", [4, None, None]), ("ben", [None, None, 5])]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([ANN, BEN]),
        json.dumps([ANN, BEN], indent=2),
        json.dumps(ANN) + "\n" + json.dumps(BEN) + "\n",
        json.dumps(ANN) + "\n\n" + json.dumps(BEN),
        "id,i1,i2,i3\nann,4,,0\nben,,,5\n",
        "i3,id,i1\r\n0,ann,4\r\n5.0,ben,\r\n",
    ],
)
def test_list_jsonl_and_csv_mean_the_same(text: str) -> None:
    assert as_lists(parse(text)) == WANTED


@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_is_one_subject(indent: int | None) -> None:
    assert as_lists(parse(json.dumps(ANN, indent=indent))) == WANTED[:1]


def test_minus_keyed_answers_are_not_reversed() -> None:
    (subject,) = parse(json.dumps({"id": "x", "answers": {"i2": 5}}))
    assert subject.agreement[1] == 5


@pytest.mark.parametrize(
    "value", [6, -1, 2.5, True, False, "4", "", [], {}, "NaN", 10**400, 1e308, "five"]
)
def test_a_value_off_the_scale_is_refused_and_named(value: Any) -> None:
    with pytest.raises(InputError, match=r"item 'i1' is .*wanted 1 to 5"):
        parse(json.dumps({"id": "x", "answers": {"i1": value}}))


@pytest.mark.parametrize(
    "cell", ["6", "-1", "2.5", "nan", "inf", "true", "1e0", "٣", "four", "0x1"]
)
def test_a_cell_off_the_scale_is_refused_and_named(cell: str) -> None:
    with pytest.raises(InputError, match="line 2: item 'i1'"):
        parse(f"id,i1\nx,{cell}\n")


@pytest.mark.parametrize(
    "bad", ["", "-a", ".a", "a b", "a/b", "../x", "a" * 129, "é", "a\n", None, 3]
)
def test_an_id_that_is_no_persona_id_is_refused(bad: Any) -> None:
    with pytest.raises(InputError, match="id is"):
        parse(json.dumps({"id": bad, "answers": {"i1": 1}}))


def test_all_problems_of_all_subjects_come_at_once() -> None:
    rows = [
        {"id": "a", "answers": {"i1": 9, "zz": 1}},
        {"id": "b", "answers": []},
        {"id": "c"},
        BEN,
        {"id": "Ben", "answers": {"i1": 1}},
    ]
    with pytest.raises(InputError) as error:
        parse(json.dumps(rows))
    for part in (
        "subject 1: item 'i1' is '9'",
        "subject 1: item 'zz' is not in inventory 'inv'",
        "subject 2: answers is list, wanted an object",
        "subject 3: is ['id']",
        "subject 5: id 'Ben' is there twice",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "id\n",
        "i1\n3\n",
        "{}",
        '{"id": "a", "answers": {"i1": NaN}}',
        '{"id": "a", "answers": {"i1": 1, "i1": 2}}',
        '{"id": "a", "answers": [1]}',
        '{"id": "a", "answers": {"i1": 1}, "more": 1}',
        '{"id": "a", "answers": {"i1": 1}}\n{"id": ',
        "[" * 100_000,
        "id,i1,i1\na,1,1\n",
    ],
)
def test_broken_files_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="answers"):
        parse(text)


@pytest.mark.parametrize("text", ["", "\n", "\ufeff", " \nid,i1\nx,1\n"])
def test_a_file_that_is_empty_or_begins_so_is_told(text: str) -> None:
    with pytest.raises(InputError, match="is empty, or its first line is"):
        parse(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(
    st.one_of(
        st.text(),
        st.text(alphabet='id,i1\n"{}[]:0123456789.'),
        json_values.map(json.dumps),
        st.fixed_dictionaries({"id": json_values, "answers": json_values}).map(json.dumps),
        st.dictionaries(st.sampled_from(["i1", "i2"]), json_values).map(
            lambda answers: json.dumps([{"id": "a", "answers": answers}])
        ),
    )
)
def test_no_text_makes_the_reader_crash(text: str) -> None:
    try:
        for subject in parse(text):
            seen = subject.agreement[np.isfinite(subject.agreement)]
            assert set(seen) <= {1, 2, 3, 4, 5}
    except InputError as error:
        assert len(str(error)) < 6000


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([6, 7, 1], "1 to 7"),
        ([6, 2, 1], "1 to 6"),
        ([10, 2, 1], "1 to 10"),
        ([100, 50, 3], "0 to 100"),
        ([-2, 0, 2], "-2 to 2"),
        ([-3, 1, 2], "-3 to 3"),
        ([0.25, 0.5, 1], "0 to 1"),
        ([3.5, 2.25, 1], "means or factors"),
    ],
)
def test_another_scale_is_recognised_and_named(values: list[float], scale: str) -> None:
    sheet = dict(zip(["i1", "i2", "i3"], values, strict=True))
    header, cells = ",".join(sheet), ",".join(map(str, values))
    for text in (json.dumps({"id": "x", "answers": sheet}), f"id,{header}\nx,{cells}\n"):
        with pytest.raises(InputError, match=scale):
            parse(text)


def sheets(count: int, seed: int, *, reverse: bool) -> str:
    """Extraverts and introverts answer i1 (+) and i2 (-); ``reverse`` stores scores."""
    rng = np.random.default_rng(seed)
    lines = []
    for n in range(count):
        talk = int(rng.integers(1, 6))
        hide = talk if reverse else 6 - talk
        lines.append(json.dumps({"id": f"s{n}", "answers": {"i1": talk, "i2": hide, "i3": 3}}))
    return "\n".join(lines)


def test_reversed_scores_of_many_people_are_recognised() -> None:
    assert parse(sheets(40, 0, reverse=False)).notes == ()
    (note,) = parse(sheets(40, 0, reverse=True)).notes
    assert "look like reversed scores" in note and "6 - score" in note
    assert parse(sheets(5, 0, reverse=True)).notes == ()


def test_a_scale_that_starts_at_0_is_pointed_out() -> None:
    rows = [json.dumps({"id": f"s{n}", "answers": {"i1": n % 5, "i3": 4}}) for n in range(40)]
    (note,) = parse("\n".join(rows)).notes
    assert "0 to 4" in note


def test_answers_are_a_sequence_of_subjects() -> None:
    found = parse(json.dumps([ANN, BEN]))
    assert [one.id for one in found[:5]] == list(found.ids) == ["ann", "ben"]
    assert found[-1].id == "ben" and found[1].answered == 1
    assert found.table.tolist() == [[4, 0, 0], [0, 0, 5]]


def test_the_template_lists_every_item_as_missing() -> None:
    assert template(INVENTORY) == {"id": "subject", "answers": {"i1": None, "i2": None, "i3": None}}
