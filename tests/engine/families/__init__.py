"""Decoder families as tiny random models."""

from .dense import DENSE
from .experts import EXPERTS
from .family import LAYERS, VOCAB, Family

FAMILIES: dict[str, Family] = DENSE | EXPERTS

__all__ = ["FAMILIES", "LAYERS", "VOCAB", "Family"]
