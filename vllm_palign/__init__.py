"""Personality steering for vLLM. This module imports neither torch nor vllm."""

from vllm_palign.errors import (
    PalignError,
    PalignStartupError,
    PersonaConflict,
    PersonaExists,
    PersonaForbidden,
    PersonaIncompatible,
    PersonaInvalid,
    PersonaNotFound,
)
from vllm_palign.persona import Persona, load, save
from vllm_palign.selection import persona_args

__version__ = "0.1.0"

__all__ = [
    "PalignError",
    "PalignStartupError",
    "Persona",
    "PersonaConflict",
    "PersonaExists",
    "PersonaForbidden",
    "PersonaIncompatible",
    "PersonaInvalid",
    "PersonaNotFound",
    "load",
    "persona_args",
    "save",
]
