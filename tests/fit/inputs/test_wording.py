"""Item texts: what can only mean "I ..." is understood, what cannot is refused, the rest is pointed out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from palign_fit.cli import app
from palign_fit.errors import InputError
from palign_fit.inputs.inventory import parse_inventory
from palign_fit.inputs.wording import common_doubt, doubt, fault, normalised
from palign_fit.methods.palign.sentences import denied, statements
from palign_fit.model.prompts import statement
from typer.testing import CliRunner

from vllm_palign.directions.inventory import Inventory


def parse(*texts: str) -> Inventory:
    rows = "".join(f'q{n},"{text}",E,f,+\n' for n, text in enumerate(texts, 1))
    return parse_inventory(f"id,text,trait,facet,key\n{rows}", source="own.csv", name="own")


@pytest.mark.parametrize(
    ("given_text", "said", "opposite"),
    [
        ("I'm shy", "I am shy.", "I am not shy."),
        ("I’m shy.", "I am shy.", "I am not shy."),
        ("Im shy", "I am shy.", "I am not shy."),
        ("I'm not shy", "I am not shy.", "I am shy."),
        ("I AM SHY", "I am shy.", "I am not shy."),
        ("I've been told off", "I have been told off.", "I have not been told off."),
        ("I've a sharp tongue", "I have a sharp tongue.", "I do not have a sharp tongue."),
        ("I've never lied", "I have never lied.", "I have often lied."),
        ("I'd rather read", "I would rather read.", "I would not rather read."),
        ("I'd been hurt before", "I had been hurt before.", "I had not been hurt before."),
        ("I'd need a friend", "I would need a friend.", "I would not need a friend."),
        ("I'd better wait", "I had better wait.", "I had better not wait."),
        ("I'll help anybody", "I will help anybody.", "I will not help anybody."),
        ("I won't lie", "I won't lie.", "I will lie."),
        ("I wouldn't lie", "I wouldn't lie.", "I would lie."),
        ("I haven't many friends", "I haven't many friends.", "I have many friends."),
        ("I was a quiet child", "I was a quiet child.", "I was not a quiet child."),
        ("I used to sing", "I used to sing.", "I did not use to sing."),
        ("I had a dull childhood", "I had a dull childhood.", "I did not have a dull childhood."),
        ("i keep what i own", "I keep what I own.", "I do not keep what I own."),
        ("1. Worry a lot", "I worry a lot.", "I do not worry a lot."),
        ("(12) Worry a lot.", "I worry a lot.", "I do not worry a lot."),
        ("Q4: Worry a lot", "I worry a lot.", "I do not worry a lot."),
        ("- Worry a lot", "I worry a lot.", "I do not worry a lot."),
        ("...worry a lot", "I worry a lot.", "I do not worry a lot."),
        ("Worry a lot (R)", "I worry a lot.", "I do not worry a lot."),
        ("“I worry a lot.”", "I worry a lot.", "I do not worry a lot."),
        ("Don’t worry", "I don't worry.", "I worry."),
    ],
)
def test_what_can_only_be_meant_in_one_way_is_understood(
    given_text: str, said: str, opposite: str
) -> None:
    (item,) = parse(given_text).items
    assert parse(given_text).notes == ()
    assert statement(item.text) == said
    assert statement(denied(item.text)) == opposite


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Is talkative", "speaks of a third person; for yourself it would be 'am talkative'"),
        ("Has few friends", "for yourself it would be 'have few friends'"),
        ("Doesn't talk much", 'for yourself it would be "don\'t talk much"'),
        ("...is reserved", "for yourself it would be 'am reserved'"),
        ("People sometimes tell me that I talk", "does not go on from I, but begins with 'people'"),
        ("My friends like me", "begins with 'my'"),
        ("When I am angry I shout", "begins with 'when'"),
        ("Do you like people?", "is a question"),
        ("Talkative", "has no verb; with one it would be 'am talkative'"),
        ("Extraverted, enthusiastic", "it would be 'am extraverted, enthusiastic'"),
        ("Not easily upset", "it would be 'am not easily upset'"),
        ("12 friends are enough", "begins with '12'"),
    ],
)
def test_what_cannot_follow_i_is_refused_with_line_and_reason(text: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        parse("worry a lot", text)
    assert f"own.csv: 1 problem(s)\n  - line 3: text is {text!r}, which" in str(error.value)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ich lache oft", "another language than English ('ich')"),
        ("Mache mir Sorgen", "('mir')"),
        ("Bin schüchtern", "('schüchtern')"),
        ("J'aime les gens", 'than English ("j\'aime")'),
        ("Me gusta la gente", "('gusta')"),
        ("Я люблю гулять", "is not in English"),
        ("Tends to find fault", "looks like a third person's verb"),
        ("Being alone", "wants a verb before it"),
        ("Parties are fun", "seems to speak of 'parties'"),
        ("In general trust people", "begins with 'in'"),
    ],
)
def test_what_may_not_follow_i_is_noted_with_line_and_reason(text: str, reason: str) -> None:
    note, advice = parse("worry a lot", text).notes
    assert note.startswith("own.csv: line 3: text ") and reason in note
    assert "in English" in advice


def test_short_texts_are_judged_together() -> None:
    words = [
        "lache",
        "weine",
        "singe",
        "tanze",
        "rede",
        "schweige",
        "arbeite",
        "warte",
        "lerne",
        "suche",
        "finde",
    ]
    assert not any(map(doubt, words))
    note = parse(*words).notes[0]
    assert "11 of 11 texts hold none of the commonest English words" in note


def test_notes_stay_short_and_change_nothing_else() -> None:
    noted = parse(*(f"ich mache {n} Dinge" for n in range(200)))
    assert len(noted.notes) == 13 and "188 more" in noted.notes[-1]
    silent = Inventory(noted.name, noted.items)
    assert noted == silent and noted.digest == silent.digest


def test_our_own_items_and_statements_are_beyond_doubt(inventory: Inventory) -> None:
    texts = [item.text for item in (*inventory.items, *statements())]
    for text in texts:
        assert normalised(text) == text and fault(text) is None and doubt(text) is None
    assert common_doubt(texts) is None and inventory.notes == ()


@pytest.mark.parametrize(
    "text",
    [
        "Am not interested in theories", "Have frequent mood swings", "Would never cheat on my taxes",
        "Willing to try anything once", "Just know that I will be a success", "Can't stand waiting",
        "Only feel comfortable with friends", "Seldom feel blue", "Discuss politics", "Bring joy",
        "Always pay my bills on time", "Have mixed feelings", "See myself as a café's regular",
    ],
)  # fmt: skip
def test_ipip_style_items_keep_their_words(text: str) -> None:
    assert normalised(text) == text[:1].lower() + text[1:]
    assert fault(normalised(text)) is None and doubt(normalised(text)) is None


@given(st.text(max_size=30))
def test_any_text_is_judged_without_a_crash(text: str) -> None:
    told = normalised(text)
    if told:
        fault(told), doubt(told), denied(told)


def test_commands_name_doubtful_items(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("id,text,trait,facet,key\nq1,ich lache oft,E,f,+\n")
    arguments = ["template", "--inventory", str(tmp_path / "own.csv")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "line 2: text 'ich lache oft' looks like" in result.stderr
