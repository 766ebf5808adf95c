"""Decoder families as tiny random models."""

from .dense import DENSE
from .experts import EXPERTS
from .family import LAYERS, VOCAB, Family
from .hybrid import HYBRID
from .latent import LATENT

FAMILIES: dict[str, Family] = DENSE | EXPERTS | HYBRID | LATENT

__all__ = ["FAMILIES", "LAYERS", "VOCAB", "Family"]
