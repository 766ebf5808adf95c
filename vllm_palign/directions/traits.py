"""The Big Five: letters, names and what is usual."""

from __future__ import annotations

import numpy as np

TRAITS = "OCEAN"
"""Openness, Conscientiousness, Extraversion, Agreeableness, Neuroticism."""

NAMES = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
"""In the order of ``TRAITS``."""

TYPICAL = {"O": 3.6, "C": 3.6, "E": 3.3, "A": 3.6, "N": 2.8}
"""What people usually score on each trait, 1..5: the norms by sex and age that J. A. Johnson's public-domain
scoring of the IPIP-NEO holds, of its 120 items (eight groups) and its 300 (four), a mean of each form and of the
two, rounded: they differ by up to 0.3, in what their items are (docs/experiments/norms.md). Without them
everybody would look agreeable, conscientious and open."""

TRAIT_SPREAD, ITEM_SPREAD = 0.55, 1.0
"""Typical standard deviations over people, in scale points: of a trait score, and of an answer around
what the person's trait scores predict. The same norms have 0.57 (120 items) and 0.51 (300) for the first."""

FACET_SPREAD = 0.45
"""How much of ITEM_SPREAD the items of one facet share, as a standard deviation: from the same norms' spreads of
facets beside those of traits, and the facets' reliability (docs/experiments/norms.md)."""

CORRELATIONS = np.array(
    [
        [1.0, 0.14, 0.31, 0.14, -0.12],
        [0.14, 1.0, 0.21, 0.31, -0.32],
        [0.31, 0.21, 1.0, 0.18, -0.26],
        [0.14, 0.31, 0.18, 1.0, -0.26],
        [-0.12, -0.32, -0.26, -0.26, 1.0],
    ]
)
"""Correlations of trait scores over people, in the order of TRAITS: sample-weighted means of 212 samples (van
der Linden, te Nijenhuis and Bakker 2010, The General Factor of Personality, J. Res. Pers. 44, Table 3)."""

MAX_VALUE = 3.0
"""Largest |trait value|, in standard deviations over people: beyond it nobody is left."""


def trait_name(trait: str) -> str:
    """``Openness`` of O, and so on."""
    return NAMES[TRAITS.index(trait)].capitalize()


def letter_of(name: str) -> str | None:
    """The trait that ``name`` names, by its letter or in full, whatever the case; None for another word."""
    if name.upper() in tuple(TRAITS):
        return name.upper()
    return dict(zip(NAMES, TRAITS, strict=True)).get(name.lower())
