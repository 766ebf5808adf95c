"""Short forms without directions: even over traits, keyings and facets."""

from __future__ import annotations

from collections import Counter

import pytest
from palign_fit.inputs.short_form import spread

from vllm_palign.directions.inventory import Inventory, Item


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
