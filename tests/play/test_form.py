from __future__ import annotations

import json

import pytest

from vllm_palign.play.form import FormError, Questionnaire, Sheet, read_answers

KNOWN = Questionnaire.of({
    "data": [
        {"id": "q1", "text": "worry", "trait": "N", "facet": "", "key": "+"},
        {"id": "q2", "text": "stay calm", "trait": "N", "facet": "", "key": "-"},
        {"id": "q3", "text": "meet people", "trait": "E", "facet": "", "key": "+"},
    ],
    "scale": {"1": "no", "5": "yes"},
    "short": {"2": ["q3", "q1"]},
    "usual": {"q1": 2, "q3": 3},
})  # fmt: skip


@pytest.mark.parametrize(
    "reply",
    [{}, {"data": [], "has_more": False}, {"data": [{}], "scale": {}}, {"data": "q1", "scale": {}},
     {"data": [], "scale": {}, "short": {"ten": []}}, {"data": [], "scale": {}, "short": {"2": ["q1"]}}],
)  # fmt: skip
def test_what_is_no_questionnaire_is_said_so(reply: dict[str, object]) -> None:
    with pytest.raises(FormError, match="not one that a palign server gives"):
        Questionnaire.of(reply)


def test_a_profile_turns_statements_that_say_the_opposite_and_leaves_open_what_is() -> None:
    assert KNOWN.profile({"q1": 5, "q2": 1, "gone": 3}, KNOWN.items) == {
        "O": None, "C": None, "E": None, "A": None, "N": 5.0,
    }  # fmt: skip
    assert KNOWN.lengths == [("2", "2"), ("all 3", "all")]
    assert KNOWN.form("2") == ["q3", "q1"] and KNOWN.form("all") == ["q1", "q2", "q3"]


def test_a_sheet_goes_on_behind_its_end_never_and_keeps_answers_across_lengths() -> None:
    sheet, form = Sheet("2"), KNOWN.form("2")
    for value in (5, 4, 1, 1):
        sheet = sheet.answer(form, value)
    assert sheet.answers == {"q3": 5, "q1": 4} and sheet.at == 2
    sheet = sheet.move(form, 1).move(form, -5)
    assert sheet.at == 0
    sheet = sheet.resize("all", KNOWN.form("all"))
    assert sheet.at == 1 and sheet.given(KNOWN.form("all")) == {"q1": 4, "q3": 5}
    assert Sheet.from_text(sheet.to_text(), KNOWN) == sheet


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"answers": 3}', '{"length": "2", "at": "x", "answers": {}}']
)
def test_what_a_tab_has_kept_is_not_trusted(text: str) -> None:
    assert Sheet.from_text(text, KNOWN) == Sheet()


@pytest.mark.parametrize(
    ("text", "name", "answers"),
    [
        ('{"id": "me", "answers": {"q1": 5, "q2": null, "q3": 0, "x": 2}}', "me", {"q1": 5}),
        ('[{"answers": {"q1": "4", "q3": 2.0}}]', "", {"q1": 4, "q3": 2}),
        ("item,statement,answer\nid,(a name),me\nq1,I worry.,3\nq2,,\n", "me", {"q1": 3}),
        ("item;statement;answer\nid;;me\nq1;\"I; worry\";3\n", "me", {"q1": 3}),
        ("\ufeffid,q1,q2,q3\nme,1,,5\n", "me", {"q1": 1, "q3": 5}),
        ("id,q1,q2\rme,4,5\r", "me", {"q1": 4, "q2": 5}),
        ("item,statement,answer,\nid,(a name),me,\nq1,I worry.,3,\n", "me", {"q1": 3}),
    ],
)  # fmt: skip
def test_answers_are_read_as_people_have_them(
    text: str, name: str, answers: dict[str, int]
) -> None:
    assert read_answers(text.encode(), KNOWN) == (name, answers)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"{", "no JSON"),
        (b'{"q1": 5}', "has no answers"),
        (json.dumps([{"answers": {}}] * 2).encode(), "holds 2 people"),
        (b"id,q1,q2\na,1,2\nb,1,2\n", "holds 2 people"),
        (b'{"answers": {"q1": 6}}', "'6'; wanted 1 to 5"),
        (b'{"answers": {"q1": true}}', "wanted 1 to 5"),
        (b'{"answers": {"x": 1}}', "answers none"),
        (b"hello", "answers none"),
        (b'q1,"' + b"x" * 140_000, "no table"),
        (b"[" * 100_000, "no JSON"),
        (b"x" * (1 << 21), "far fewer"),
        (b'{"answers": {"q1": [1]}}', "wanted 1 to 5"),
    ],
)
def test_a_file_that_says_nothing_is_told_what_was_wanted(data: bytes, said: str) -> None:
    with pytest.raises(FormError, match=said):
        read_answers(data, KNOWN)
