"""Somebody before a questionnaire: which items are asked where there is time for a few and no directions say which tell
most, what was answered, and what is asked next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_palign.directions.inventory import Inventory, Item
from vllm_palign.directions.traits import TRAITS

KEYS = "1 to 5, s to skip, b to go back, q to quit"


@dataclass
class Sitting:
    """One person and the items of one form, in the order they are asked.

    ``answers``: item id -> 1 to 5; other items' than the form's stay as they are. ``at`` is the place asked
    now, ``len(form)`` after the last; asking begins at the first item without an answer. ``done`` once whoever
    answers has finished.
    """

    form: Sequence[Item]
    answers: dict[str, int]
    at: int = field(init=False)
    done: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.at = self._open(0)

    @property
    def answered(self) -> int:
        """Items of the form that have an answer."""
        return sum(item.id in self.answers for item in self.form)

    @property
    def prompt(self) -> str:
        """What is asked now, in one line."""
        if self.at == len(self.form):
            return "That was the last. Enter finishes, b goes back: "
        item = self.form[self.at]
        given = self.answers.get(item.id)
        stays = "" if given is None else f" (now {given}, Enter keeps it)"
        return f"[{self.at + 1}/{len(self.form)}] I {item.text}.{stays} "

    def take(self, said: str) -> str | None:
        """What was typed, in lower case, without blanks around. Returns what is wrong with it, or None.

        A number answers and goes on to the next item without an answer; "s" leaves the item without one; "b"
        goes one item back; nothing keeps an answer, and finishes after the last item.
        """
        last = self.at == len(self.form)
        if said == "b":
            self.at = max(self.at - 1, 0)
            return None
        if last and not said:
            self.done = True
            return None
        if last:
            return f"got {said[:40]!r}, wanted Enter to finish, or b to go back"
        item = self.form[self.at]
        if said in ("1", "2", "3", "4", "5"):
            self.answers[item.id] = int(said)
        elif said == "s":
            self.answers.pop(item.id, None)
        elif said or item.id not in self.answers:
            return f"got {said[:40]!r}, wanted {KEYS}"
        self.at = self._open(self.at + 1)
        return None

    def _open(self, start: int) -> int:
        """The first place from ``start`` on without an answer, or the end."""
        places = range(start, len(self.form))
        return next(
            (place for place in places if self.form[place].id not in self.answers), len(self.form)
        )


def spread(inventory: Inventory, count: int) -> list[Item]:
    """``count`` items of ``inventory``, or all there are, spread evenly.

    One trait after the other, in the order of TRAITS; of each trait both keyings alike, as far as it has
    them, then the facets alike; ties go to the keying asked less often and to the earlier item. A longer form
    begins with the shorter ones.
    """
    left = {trait: [item for item in inventory.items if item.trait == trait] for trait in TRAITS}
    keyings: Counter[tuple[str, int]] = Counter()
    facets: Counter[tuple[str, str]] = Counter()
    signs: Counter[int] = Counter()
    chosen: list[Item] = []
    while any(left.values()):
        for trait in TRAITS:
            if not left[trait]:
                continue
            item = min(
                left[trait],
                key=lambda one: (
                    keyings[one.trait, one.sign],
                    facets[one.trait, one.facet],
                    signs[one.sign],
                ),
            )
            left[trait].remove(item)
            keyings[trait, item.sign] += 1
            facets[trait, item.facet] += 1
            signs[item.sign] += 1
            chosen.append(item)
            if len(chosen) == count:
                return chosen
    return chosen
