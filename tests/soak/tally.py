"""What came of every request."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

RIGHT, REFUSED, LEFT, LOST, WRONG = OUTCOMES = (
    "right",
    "refused",
    "left",
    "lost to a kill",
    "wrong",
)
"""``refused``: as it must be. ``left``: the client went away."""


class Wrong(AssertionError):
    """The server did what it must not."""


class Lost(Exception):
    """No answer, or half of one: to be expected while a process is killed, and never else."""


@dataclass
class Deed:
    """One thing that somebody does; ``kind`` is its row of the table."""

    kind: str


class Tally:
    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """(kind, outcome) -> how often."""
        self.features: Counter[str] = Counter()
        """What else the answers that were right show."""
        self.wrong: list[str] = []
        self.tokens = 0
        self.worst = 0.0
        """Largest |log-probability difference| to the reference."""

    @property
    def total(self) -> int:
        return sum(self.outcomes.values())

    def count(self, kind: str, outcome: str) -> None:
        self.outcomes[kind, outcome] += 1

    def note_wrong(self, kind: str, what: str) -> None:
        self.count(kind, WRONG)
        self.wrong.append(f"{kind}: {what}")

    def of(self, outcome: str) -> int:
        return sum(count for (_, found), count in self.outcomes.items() if found == outcome)

    def kinds(self) -> list[str]:
        return sorted({kind for kind, _ in self.outcomes})
