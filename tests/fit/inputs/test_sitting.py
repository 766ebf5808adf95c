"""A person before a form: numbers, s, b and Enter; short forms without directions: even over traits, keyings and facets."""

from __future__ import annotations

from collections import Counter

import pytest
from palign_fit.inputs.sitting import Sitting, spread

from vllm_palign.directions.inventory import Inventory, Item

FORM = [Item(f"q{n}", f"do thing {n}", "E", "f", 1) for n in range(1, 5)]


def sit(typed: str, answers: dict[str, int] | None = None) -> Sitting:
    """After what was ``typed``, a character each; "_" is Enter alone."""
    sitting = Sitting(FORM, {} if answers is None else answers)
    for said in typed:
        assert sitting.take(said.replace("_", "")) is None
    return sitting


def test_numbers_answer_one_item_after_the_other_and_enter_finishes() -> None:
    sitting = sit("1234")
    assert sitting.answers == {"q1": 1, "q2": 2, "q3": 3, "q4": 4}
    assert not sitting.done and "last" in sitting.prompt
    assert sit("1234_").done


def test_back_shows_the_answer_enter_keeps_it_and_a_number_replaces_it() -> None:
    sitting = sit("12b")
    assert sitting.prompt == "[2/4] I do thing 2. (now 2, Enter keeps it) "
    assert sit("12b_").at == sit("12b5").at == 2
    assert sit("12b5").answers == {"q1": 1, "q2": 5}
    assert sit("12bb4").at == 2, "what has an answer is not asked again"
    assert sit("bb1").answers == {"q1": 1}


def test_the_last_answer_can_be_taken_back() -> None:
    assert sit("1234b2_").answers["q4"] == 2


def test_skipping_leaves_an_item_without_an_answer_and_takes_one_away() -> None:
    assert sit("1s34").answers == {"q1": 1, "q3": 3, "q4": 4}
    assert sit("1234bs").answers == {"q1": 1, "q2": 2, "q3": 3}
    assert sit("1s34").answered == 3


def test_it_goes_on_at_the_first_item_without_an_answer_and_keeps_those_of_other_forms() -> None:
    sitting = sit("", {"q1": 1, "q3": 3, "q99": 5})
    assert sitting.at == 1 and sitting.answered == 2
    assert sit("24", {"q1": 1, "q3": 3, "q99": 5}).answers == {
        "q1": 1, "q2": 2, "q3": 3, "q4": 4, "q99": 5
    }  # fmt: skip
    complete = sit("", {f"q{n}": 3 for n in range(1, 5)})
    assert complete.at == 4 and not complete.done, "so that b can still go back"


def test_anything_else_is_told_and_changes_nothing() -> None:
    for typed in ("6", "0", "33", "x", "", "-1", "²", "yes" * 40):
        sitting = sit("1")
        assert "wanted 1 to 5" in str(sitting.take(typed))
        assert (sitting.at, sitting.answers) == (1, {"q1": 1})
    assert "wanted Enter" in str(sit("1234").take("5"))


@pytest.mark.parametrize("count", [10, 30, 60])
def test_a_form_asks_each_trait_alike_half_of_it_turned_and_no_facet_twice_as_often(
    inventory: Inventory, count: int
) -> None:
    form = spread(inventory, count)
    assert len({item.id for item in form}) == count
    traits = Counter(item.trait for item in form)
    assert set(traits.values()) == {count // 5}
    for trait in traits:
        own = [item for item in form if item.trait == trait]
        assert sum(item.sign for item in own) in (-1, 0, 1)
        facets = Counter(item.facet for item in own)
        assert max(facets.values()) - min(facets.values()) <= 1 or len(own) < 6
        assert len(facets) == min(6, len(own))
    assert abs(sum(item.sign for item in form)) <= 1


def test_a_longer_form_begins_with_the_shorter_one(inventory: Inventory) -> None:
    assert spread(inventory, 60)[:30] == spread(inventory, 30)
    assert spread(inventory, 30)[:10] == spread(inventory, 10)


def test_an_inventory_that_cannot_be_even_is_asked_as_evenly_as_it_can() -> None:
    items = [Item(f"e{n}", "shout", "E", "one", 1) for n in range(7)]
    items += [Item("e7", "whisper", "E", "two", -1), Item("n0", "worry", "N", "one", 1)]
    whole = Inventory("odd", tuple(items))
    assert [item.id for item in spread(whole, 4)] == ["e0", "n0", "e7", "e1"]
    assert sorted(item.id for item in spread(whole, 60)) == sorted(item.id for item in items)
