from __future__ import annotations

import pytest
from palign_fit.evaluation.speech.answers import machine, repeated, shares


@pytest.mark.parametrize(
    "said",
    [
        "As an AI language model, I don't have a phone.",
        "as an artificial intelligence I cannot sit on a bus",
        "I'm just a computer program, so I have no friends.",
        "I am a large language model, trained by Alibaba Cloud.",
        "I don't have personal experiences, but many people read.",
        "Well, I do not have any personal opinions on that.",
        "As a digital assistant, I'd suggest a list.",
        "I don’t have feelings like humans do.",
        "I am an AI assistant, designed to help.",
        "Als KI-Sprachmodell habe ich keine Freunde.",
        "Ich bin nur ein Computerprogramm.",
        "Ich habe keine persönlichen Gefühle, aber gern.",
        "As a machine, I do not sleep.",
        "I don't have a physical body.",
    ],
)
def test_a_machine_is_heard(said: str) -> None:
    assert machine(said)


@pytest.mark.parametrize(
    "said",
    [
        "I would call a friend and laugh about it.",
        "As an adult I avoid that, as a rule.",
        "I don't have any money with me, so I walk.",
        "I am a bit of a machine when I work out, people say.",
        "I read a book about computers on the train.",
        "I'm an early riser and fix my own robots.",
        "Als Kind war ich laut. Ich bin ein ruhiger Mensch.",
        "I don't have the energy for parties.",
        "I aim to be on time.",
        "I'm a computer scientist, and I am a machine operator's son.",
        "As a program manager, I would call the team.",
        "As a computer science student I love it.",
        "As a machine learning engineer, I would ask the team.",
        "As a machine operator I know that noise.",
        "I don't have personal space at home.",
        "I do not feel physical pain often.",
    ],
)
def test_a_person_is_not_taken_for_one(said: str) -> None:
    assert not machine(said)


def test_runs_of_four_words_that_come_again_are_counted() -> None:
    assert repeated("one two three") == 0
    assert repeated("I am not a mean person, no") == 0
    # Nine runs; the second round of four words brings four different ones again.
    said = "I am so glad. I am so glad. I am so glad."
    assert repeated(said) == pytest.approx(5 / 9)


def test_shares_are_of_each_persons_answers() -> None:
    machines, again = shares([["As an AI, no.", "Gladly."], ["Yes.", "a b c d a b c d"]])
    assert machines.tolist() == [0.5, 0.0]
    assert again.tolist() == pytest.approx([0, 0.1])
