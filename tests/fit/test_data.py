"""The texts in `palign_fit/data`, and the pairs of two voices: as many as promised, none twice, and poles that differ in the trait alone."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from itertools import chain

import pytest
from palign_fit.evaluation.judge import QUESTIONS
from palign_fit.inputs.traits import ADJECTIVES

from tests.conftest import ROOT
from vllm_palign.directions.traits import TRAITS

Row = dict[str, str]

ASKED_AT = (2, 10, 20, 30, 40, 50)
"""Turns of a scripted conversation that ask about a situation."""


def read(name: str) -> list[Row]:
    with (ROOT / "tools/palign_fit/data" / f"{name}.csv").open(
        encoding="utf-8", newline=""
    ) as file:
        return list(csv.DictReader(file, strict=True))


def words(text: str) -> int:
    return len(text.split())


def sentences(text: str) -> int:
    return len(re.findall(r"[.?!](?=\s|$)", text))


ANSWERS, FACTS = read("answers"), read("facts")
VOICES = [
    json.loads(line)
    for line in (ROOT / "examples/pairs_voice.jsonl").read_text(encoding="utf-8").splitlines()
]
POLES = ("high", "low")


def test_every_file_has_the_rows_that_an_evaluation_counts_on() -> None:
    assert Counter(row["trait"] for row in ANSWERS) == dict.fromkeys(TRAITS, 12)
    assert Counter(row["trait"] for row in read("situations")) == dict.fromkeys(TRAITS, 12)
    assert len(VOICES) == 24
    assert Counter(row["kind"] for row in FACTS) == {"fact": 40, "sum": 40, "format": 20}
    assert Counter(row["language"] for row in FACTS) == {"en": 92, "de": 8}
    assert Counter(row["kind"] for row in read("chats")) == {
        "english": 16,
        "german": 12,
        "code": 12,
    }


def test_no_text_is_empty_and_none_stands_twice_in_one_file_or_in_two() -> None:
    files = {
        "answers": ("question", *POLES),
        "situations": ("question",),
        "facts": ("question",),
        "chats": ("text",),
        "conversations": ("user",),
    }
    texts = [row[column] for name, used in files.items() for row in read(name) for column in used]
    texts += [question.text for question in QUESTIONS]
    texts += [text for pair in VOICES for text in pair.values()]
    assert all(text and text == text.strip() and "\n" not in text for text in texts)
    assert not [text for text, times in Counter(map(str.lower, texts)).items() if times > 1]


def test_the_answers_cover_every_facet_of_the_inventory_twice() -> None:
    facets = {(row["trait"], row["facet"]) for row in read("inventory")}
    assert Counter((row["trait"], row["facet"]) for row in ANSWERS) == dict.fromkeys(facets, 2)


@pytest.mark.parametrize("row", ANSWERS, ids=[row["question"] for row in ANSWERS])
def test_both_poles_are_answered_in_the_same_form(row: Row) -> None:
    high, low = (row[pole] for pole in POLES)
    assert all(25 <= words(answer) <= 45 for answer in (high, low))
    assert abs(words(high) - words(low)) <= 4
    assert sentences(high) == sentences(low) in (2, 3)


def test_openings_and_lengths_do_not_tell_the_poles_apart() -> None:
    same = [row["high"].split()[0] == row["low"].split()[0] for row in ANSWERS]
    assert sum(same) >= 0.95 * len(ANSWERS)
    assert Counter(row["high"].split()[0] for row in ANSWERS).most_common(1)[0][1] <= 6
    for trait in TRAITS:
        high, low = (
            sum(words(row[pole]) for row in ANSWERS if row["trait"] == trait) for pole in POLES
        )
        assert abs(high / low - 1) < 0.03, trait


def test_answers_show_a_trait_and_do_not_name_it() -> None:
    poles = chain.from_iterable(ADJECTIVES.values())
    labels = {label.strip() for pole in poles for label in pole.split(",")}
    label = re.compile(rf"\b(?:{'|'.join(map(re.escape, labels))})\b", re.IGNORECASE)
    named = [row for row in ANSWERS if label.search(row["high"]) or label.search(row["low"])]
    assert len(named) < 0.1 * len(ANSWERS)


def test_a_person_and_a_machine_answer_at_equal_length_and_only_one_speaks_as_a_machine() -> None:
    voice = re.compile(r"\b(?:AI|artificial|computer|program|assistant|model|physical being)\b")
    for row in VOICES:
        assert all(20 <= words(row[speaker]) <= 40 for speaker in ("chosen", "rejected"))
        assert abs(words(row["chosen"]) - words(row["rejected"])) <= 6, row["prompt"]
        assert voice.search(row["rejected"]) and not voice.search(row["chosen"]), row["prompt"]
    assert not any(
        re.search(r"\bAI\b|language model", row[pole]) for row in ANSWERS for pole in POLES
    )


def test_right_replies_can_be_told_from_wrong_ones() -> None:
    for row in FACTS:
        if row["kind"] == "fact":
            assert all(accepted.strip() for accepted in row["answer"].split("|"))
        elif row["kind"] == "format":
            pattern = re.compile(row["answer"], re.IGNORECASE)
            assert not pattern.fullmatch("") and not pattern.fullmatch("Sure! Here it is: ok")
        else:
            first, sign, second = re.findall(r"\d+|\+|-|times|divided by", row["question"])
            a, b = int(first), int(second)
            right = {"+": a + b, "-": a - b, "times": a * b, "divided by": a / b}[sign]
            assert int(row["answer"]) == right, row["question"]


def test_a_conversation_has_fifty_turns_and_asks_about_every_trait() -> None:
    rows = read("conversations")
    scripts = ("kind", "provoker", "facts")
    assert [(row["script"], int(row["turn"])) for row in rows] == [
        (script, turn) for script in scripts for turn in range(1, 51)
    ]
    assert all(5 <= words(row["user"]) <= 25 for row in rows)
    assert all(row["user"].endswith("?") for row in rows if int(row["turn"]) in ASKED_AT)
