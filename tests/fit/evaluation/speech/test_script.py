from __future__ import annotations

from collections import Counter

import pytest
from palign_fit.evaluation.speech.script import (
    TRAITS,
    Fact,
    chats,
    facts,
    scripts,
    situations,
)


@pytest.mark.parametrize(
    ("kind", "answer", "said", "right"),
    [
        ("fact", "Paris", "It is Paris.", True),
        ("fact", "Paris", "parisian", False),
        ("fact", "H2O|H₂O", "Water is H₂O, of course", True),
        ("fact", "Canberra", "Sydney", False),
        ("sum", "42", "17 + 25 = 42.", True),
        ("sum", "42", "17 + 25 = 42, so 43", False),
        ("sum", "1200", "The result is 1,200.", True),
        ("sum", "1.5", "1,5", True),
        ("sum", "5", "five", False),
        ("sum", "42", "1.234.567", False),
        ("sum", "42", "It was on 31.12.2024", False),
        ("sum", "42", "1,5,2", False),
        ("sum", "42", "On 31.12.2024 it was 42", True),
        ("format", "(yes|no)", " Yes\n", True),
        ("format", "(yes|no)", "Yes, I think", False),
    ],
)
def test_what_is_right(kind: str, answer: str, said: str, right: bool) -> None:
    assert Fact(kind, "en", "?", answer).right(said) == right


def test_the_shipped_questions_are_whole() -> None:
    found = situations("test")
    assert len(found) >= 60 and len({one.question for one in found}) == len(found)
    assert set(Counter(one.trait for one in found)) == set(TRAITS)
    assert not {one.question for one in found} & {one.question for one in situations("train")}
    two = situations("test", 2)
    assert [one.trait for one in two] == [trait for trait in TRAITS for _ in range(2)]


def test_the_shipped_facts_chats_and_conversations_are_whole() -> None:
    kinds = Counter(one.kind for one in facts())
    assert kinds["fact"] >= 40 and kinds["sum"] >= 40 and kinds["format"] >= 20
    assert set(Counter(one.kind for one in chats())) == {"english", "german", "code"}
    assert {name: len(said) for name, said in scripts().items()} == {
        "facts": 50,
        "kind": 50,
        "provoker": 50,
    }
