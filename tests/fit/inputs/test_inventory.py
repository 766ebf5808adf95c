from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from palign_fit.errors import InputError
from palign_fit.inputs.inventory import normalised, parse_inventory, read_inventory

from vllm_palign.directions.inventory import Inventory

GOOD = "id,text,trait,facet,key\na1,Make friends easily.,E,Friendliness,+\na2,hide,E,,-\n"


def parse(text: str) -> Inventory:
    return parse_inventory(text, source="inv.csv", name="inv")


def test_the_built_in_inventory_is_balanced_over_traits_and_keyings(inventory: Inventory) -> None:
    assert Counter((item.trait, item.sign) for item in inventory.items) == {
        (trait, sign): 12 for trait in "OCEAN" for sign in (1, -1)
    }
    assert len({item.text for item in inventory.items}) == 120
    assert set(Counter(item.facet for item in inventory.items).values()) == {4}


def test_every_built_in_text_completes_a_sentence_that_starts_with_i(inventory: Inventory) -> None:
    for item in inventory.items:
        assert item.text == normalised(item.text)
        assert not item.text.lower().startswith("i ")


@pytest.mark.parametrize(
    ("given_text", "wanted"),
    [
        ("Make friends easily", "make friends easily"),
        ("make friends easily.", "make friends easily"),
        ("  Make   friends\teasily. ", "make friends easily"),
        ("I make friends easily.", "make friends easily"),
        ("TV is my best friend", "TV is my best friend"),
        ("A", "a"),
        ("", ""),
    ],
)
def test_texts_come_in_any_usual_form(given_text: str, wanted: str) -> None:
    assert normalised(given_text) == wanted


def test_csv_and_json_give_the_same_items_and_digest() -> None:
    rows = [
        {
            "id": "a1",
            "text": "Make friends easily",
            "trait": "E",
            "facet": "Friendliness",
            "key": "+",
        },
        {"id": "a2", "text": "hide", "trait": "E", "facet": "", "key": "-"},
    ]
    assert parse(GOOD) == parse(json.dumps(rows))
    assert parse(GOOD).digest == parse(json.dumps(rows)).digest


def test_what_is_printed_can_be_read_again(inventory: Inventory) -> None:
    again = parse_inventory(inventory.to_csv(), source="again", name=inventory.name)
    assert again == inventory


def test_all_problems_come_in_one_message_that_names_lines() -> None:
    with pytest.raises(InputError) as error:
        parse("id,text,trait,facet,key\n-,x,E,f,+\na2,,Q,f,?\na2,y,E,f,-\na2,z,E,f,+\n")
    message = str(error.value)
    assert "inv.csv: 5 problem(s)" in message
    for part in (
        "line 2: id is '-'",
        "line 3: text",
        "line 3: trait is 'Q'",
        "line 3: key is '?'",
        "line 5: id 'a2' is there twice",
    ):
        assert part in message


def test_the_message_stays_short_however_many_problems_there_are() -> None:
    rows = "".join(f"b{n},{'y' * 5000},Q{'q' * 5000},f,?\n" for n in range(200))
    with pytest.raises(InputError) as error:
        parse("id,text,trait,facet,key\n" + rows)
    assert len(str(error.value)) < 6000
    assert "more" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id,text,trait,facet,key\n",
        "id,text\na,b\n",
        "{}",
        "[1, 2]",
        "[]",
        '[{"id": 3}]',
        "[" * 100_000,
        'id,text,trait,facet,key\n"unclosed',
        "id,id,trait,facet,key\n1,2,E,f,+\n",
        GOOD + "a3,x,E\n",
    ],
)
def test_a_broken_inventory_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"inv\.csv"):
        parse(text)


@given(st.one_of(st.text(), st.text(alphabet='id,text\ra\n"{}[]:+-EOCAN1')))
def test_no_text_makes_the_reader_crash(text: str) -> None:
    try:
        assert parse(text).items
    except InputError as error:
        assert len(str(error)) < 6000


@given(st.binary())
def test_no_bytes_make_the_reader_crash(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "inv"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_inventory(path)


def test_a_folder_or_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(InputError, match="cannot be read"):
            read_inventory(path)
