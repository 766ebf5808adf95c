"""Which items to ask where there is time for a few, and no directions that say which tell most."""

from __future__ import annotations

from collections import Counter

from vllm_palign.directions.inventory import Inventory, Item
from vllm_palign.directions.traits import TRAITS


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
