"""Rows are held as long as a seated request needs them, and reused least recently used first."""

from __future__ import annotations

from vllm_palign.worker.rows import RowTable


def test_an_effect_keeps_its_row_while_anybody_holds_it() -> None:
    table = RowTable(2)
    assert table.hold(["alice", "alice", "bob"]) == [("alice", 1), ("bob", 2)]
    table.release("alice")
    table.release("bob")
    assert table.hold(["carol"]) == [("carol", 2)], "alice still has a holder"
    assert table.row("alice") == 1
    assert (table.num_held, table.num_resident) == (2, 2)


def test_a_row_nobody_holds_is_kept_filled_until_it_is_needed_the_longest_unused_first() -> None:
    table = RowTable(3)
    table.hold(["alice", "bob", "carol"])
    for key in ("bob", "alice", "carol"):
        table.release(key)
    assert table.num_held == 0
    assert table.hold(["alice"]) == [], "still filled"
    assert table.hold(["dave"]) == [("dave", 2)], "bob's"
    assert table.num_resident == 3


def test_none_of_those_that_come_at_once_loses_its_row_to_another() -> None:
    table = RowTable(2)
    table.hold(["alice", "bob"])
    table.release("alice")
    table.release("bob")
    assert table.hold(["carol", "alice"]) == [("carol", 2)]
