"""Decoder families as tiny random models."""

from .dense import DENSE
from .experts import EXPERTS
from .family import LAYERS, VOCAB, Family
from .hybrid import HYBRID

FAMILIES: dict[str, Family] = DENSE | EXPERTS | HYBRID

__all__ = ["FAMILIES", "LAYERS", "VOCAB", "Family"]
