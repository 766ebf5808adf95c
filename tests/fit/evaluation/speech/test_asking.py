from __future__ import annotations

from pathlib import Path

import pytest
from palign_fit.evaluation.speech.asking import as_entry, kept, of_entry
from palign_fit.model.cache import Arrays, Cache
from palign_fit.progress import Tick, no_progress


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    keys = [{"person": one} for one in ("a", "b", "a", "c", "d")]
    asked: list[list[int]] = []

    def compute(places: list[int], tick: Tick) -> list[Arrays]:
        if len(asked) == 1 and not (tmp_path / "on").exists():
            raise KeyboardInterrupt
        asked.append(places)
        return [as_entry(keys[place]["person"]) for place in places]

    def run() -> list[str]:
        found = kept(Cache(tmp_path), keys, [40] * 5, compute, no_progress, "x", together=80)
        return [of_entry(entry) for entry in found]

    with pytest.raises(KeyboardInterrupt):
        run()
    assert asked == [[0, 1]]
    (tmp_path / "on").touch()
    assert run() == ["a", "b", "a", "c", "d"]
    assert asked == [[0, 1], [3, 4]]
    assert run() == ["a", "b", "a", "c", "d"] and len(asked) == 2


def test_one_entry_may_be_larger_than_a_group(tmp_path: Path) -> None:
    def compute(places: list[int], tick: Tick) -> list[Arrays]:
        assert len(places) == 1
        return [as_entry(places)]

    found = kept(Cache(None), [{"n": 1}, {"n": 2}], [500, 500], compute, no_progress, "x")
    assert [of_entry(one) for one in found] == [[0], [1]]
