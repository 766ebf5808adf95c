"""Texts and readings that a killed evaluation finds again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from palign_fit.model.cache import Arrays, Cache, key_digest
from palign_fit.progress import Progress, Tick

TOGETHER = 64
"""Answers or readings that are computed before they are kept, where single entries are smaller."""


def kept(
    cache: Cache,
    keys: Sequence[Mapping[str, Any]],
    sizes: Sequence[int],
    compute: Callable[[list[int], Tick], list[Arrays]],
    progress: Progress,
    name: str,
    together: int = TOGETHER,
) -> list[Arrays]:
    """One entry a key. Those that ``cache`` does not have are computed some at a time and kept at once; equal keys
    are computed once.

    ``together``: answers of a group, if single entries are smaller. ``compute`` is given places of ``keys``, and ticks each of the ``sizes`` answers or readings of an entry.
    """
    names = [key_digest(key) for key in keys]
    places = {digest: place for place, digest in reversed(list(enumerate(names)))}
    found: dict[str, Arrays] = {}
    missing: list[int] = []
    with progress(name, sum(sizes[place] for place in places.values())) as tick:
        for place in sorted(places.values()):
            entry = cache.find(keys[place])
            if entry is None:
                missing.append(place)
            else:
                found[names[place]] = entry
                tick(sizes[place], free=True)
        for group in _groups(missing, sizes, together):
            for place, entry in zip(group, compute(group, tick), strict=True):
                cache.keep(keys[place], entry)
                found[names[place]] = entry
    return [found[digest] for digest in names]


def _groups(places: Sequence[int], sizes: Sequence[int], most: int) -> list[list[int]]:
    groups: list[list[int]] = []
    rows = most
    for place in places:
        if not groups or rows + sizes[place] > most:
            groups.append([])
            rows = 0
        groups[-1].append(place)
        rows += sizes[place]
    return groups


def as_entry(value: Any) -> Arrays:
    """JSON-ready data as an entry of the cache."""
    return {"json": np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)}


def of_entry(entry: Arrays) -> Any:
    return json.loads(entry["json"].tobytes())
