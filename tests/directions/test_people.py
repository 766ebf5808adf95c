"""Which items to ask first."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.directions import tiny_directions
from vllm_palign.directions.people import best_items


def test_the_items_that_move_much_and_of_every_trait_come_first() -> None:
    made = tiny_directions(3, 4, 8)
    chosen = best_items(made.whole, 10)
    assert len(set(chosen)) == 10
    traits = [made.inventory.items[place].trait for place in chosen]
    assert sorted(traits[:5]) == sorted("OCEAN") and len(set(traits)) == 5
    assert best_items(made.whole, 20)[:10] == chosen


def test_items_that_nothing_was_learned_from_are_not_asked() -> None:
    made = tiny_directions(3, 4, 8)
    rows = np.arange(40) % 2 == 0
    half = dataclasses.replace(made.whole, rows=rows)
    chosen = best_items(half, 60)
    assert sorted(chosen) == np.flatnonzero(rows).tolist()
