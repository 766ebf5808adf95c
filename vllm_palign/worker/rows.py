"""Which row of offsets belongs to which effect."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class RowTable:
    """Rows 1 to ``rows``, each for one effect; row 0 is nobody's.

    An effect *holds* its row while a seated request has it. Rows that nobody holds are kept, and taken
    least-recently-used first. As there are as many rows as seats, a row can always be had.
    """

    def __init__(self, rows: int) -> None:
        self._row_of: dict[str, int] = {}
        self._holders: dict[str, int] = {}
        self._kept: OrderedDict[str, None] = OrderedDict()
        self._free = list(range(rows, 0, -1))

    @property
    def num_held(self) -> int:
        """Rows in use."""
        return len(self._holders)

    @property
    def num_resident(self) -> int:
        """Rows in use or kept."""
        return len(self._row_of)

    def row(self, key: str) -> int:
        """The row of an effect that holds one."""
        return self._row_of[key]

    def hold(self, keys: Iterable[str]) -> list[tuple[str, int]]:
        """One more holder for each of ``keys``. Returns the rows that have to be filled for that, with
        their keys."""
        keys = list(keys)
        # All are held before any row is taken: none of them may lose its row to another.
        for key in keys:
            self._holders[key] = self._holders.get(key, 0) + 1
            self._kept.pop(key, None)
        taken = []
        for key in keys:
            if key not in self._row_of:
                row = self._free.pop() if self._free else self._take_kept()
                self._row_of[key] = row
                taken.append((key, row))
        return taken

    def release(self, key: str) -> None:
        """One holder less."""
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self._kept[key] = None

    def _take_kept(self) -> int:
        key, _ = self._kept.popitem(last=False)
        return self._row_of.pop(key)
