"""Decoder families as tiny random models."""

from tests.engine.families.dense import DENSE
from tests.engine.families.experts import EXPERTS
from tests.engine.families.family import LAYERS, VOCAB, Family
from tests.engine.families.hybrid import HYBRID
from tests.engine.families.latent import LATENT

FAMILIES: dict[str, Family] = DENSE | EXPERTS | HYBRID | LATENT

__all__ = ["FAMILIES", "LAYERS", "VOCAB", "Family"]
