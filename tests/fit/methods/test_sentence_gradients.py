"""What the model was run for is kept: a stage that was killed goes on, another inventory finds it done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from palign_fit.inputs.inventory import built_in
from palign_fit.methods.palign import sentence_gradients as module
from palign_fit.methods.palign.sentence_gradients import SentenceGradients
from palign_fit.model.cache import Cache, ModelCache
from palign_fit.model.continuations import BATCH
from palign_fit.progress import Tick

from vllm_palign.directions.inventory import Inventory, Item

EVERY = np.ones(120, bool)


class Counting:
    """Counts how often the model is run over each sentence; dies after ``packs`` packs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: Counter[tuple[int, ...]] = Counter()
        self.packs = 10**9
        real = module.read_gradients

        def read(model: Any, prefix: Any, lines: Sequence[Sequence[int]], tick: Any) -> Any:
            if not self.packs:
                raise KeyboardInterrupt
            self.packs -= 1
            self.read.update(tuple(line) for line in lines)
            return real(model, prefix, lines, tick)

        monkeypatch.setattr(module, "read_gradients", read)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def same(one: SentenceGradients, other: SentenceGradients) -> bool:
    return bool(
        (one.gradients == other.gradients).all() and (one.covariance == other.covariance).all()
    )


def test_a_killed_stage_goes_on_where_it_was_and_no_sentence_is_read_twice(
    tiny: Any, inventory: Inventory, tmp_path: Path, counting: Counting
) -> None:
    whole = SentenceGradients.read(tiny, inventory, EVERY)
    once = dict(counting.read)
    # Words unknown to the tiny model make a few sentences alike; none is read oftener than it is said.
    counting.read.clear()
    kept = ModelCache.of(tiny, Cache(tmp_path))
    for packs in (3, 1, 20):
        counting.packs = packs
        with pytest.raises(KeyboardInterrupt):
            SentenceGradients.read(tiny, inventory, EVERY, kept)
    assert sum(counting.read.values()) > 20 * BATCH
    counting.packs = 10**9
    resumed = SentenceGradients.read(tiny, inventory, EVERY, kept)
    assert counting.read == once
    assert same(resumed, whole)


def test_another_inventory_reads_only_what_is_its_own(
    tiny: Any, inventory: Inventory, tmp_path: Path, counting: Counting
) -> None:
    kept = ModelCache.of(tiny, Cache(tmp_path))
    SentenceGradients.read(tiny, inventory, EVERY, kept)
    counting.read.clear()
    shared = built_in().items[:30]
    own = tuple(
        Item(f"x{n}", f"like hard task number {n}", "OCEAN"[n % 5], "f", 1 - 2 * (n % 2))
        for n in range(10)
    )
    mixed = Inventory("mixed", (*shared, *own))
    found = SentenceGradients.read(tiny, mixed, np.ones(40, bool), kept)
    assert sum(counting.read.values()) == 2 * len(own)
    assert same(found, SentenceGradients.read(tiny, mixed, np.ones(40, bool)))
    counting.read.clear()
    # Items that nobody answered change nothing for the others.
    SentenceGradients.read(tiny, inventory, np.arange(120) > 30, kept)
    assert not counting.read


def test_progress_tells_what_was_there_already_from_what_takes_time(
    tiny: Any, inventory: Inventory, tmp_path: Path
) -> None:
    told: list[tuple[int, bool]] = []
    stages: list[tuple[str, int | None]] = []

    @contextmanager
    def progress(name: str, total: int | None) -> Iterator[Tick]:
        stages.append((name, total))
        yield lambda count, /, *, free=False: told.append((count, free))

    kept = ModelCache.of(tiny, Cache(tmp_path))
    for free in (False, True):
        told.clear()
        SentenceGradients.read(tiny, inventory, EVERY, kept, progress)
        assert {one for _, one in told} == {free}
    assert stages[-1][0] == "gradients" and stages[-1][1] == sum(count for count, _ in told)
