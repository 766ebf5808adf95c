"""How to fit, and whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from palign_fit.errors import InputError
from palign_fit.inputs.answers import Subject
from palign_fit.model import prompts
from palign_fit.model.cache import key_digest
from palign_fit.model.model import OpenedModel, model_dtype
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask
from vllm_palign.directions.record import tool
from vllm_palign.directions.scores import check_agreement
from vllm_palign.directions.traits import TYPICAL
from vllm_palign.errors import PersonaInvalid

METHODS = {
    "palign": "palign_fit.methods.palign.fitter:PalignFitter",
    "pas-reference": "palign_fit.methods.pas_reference.fitter:ReferenceFitter",
}
"""What ``--method`` may be, the default first, and where its fitter is (``fit.Method``). A method is added here;
fitters know their settings, so that settings name fitters without importing them."""


@dataclass(frozen=True)
class Settings:
    """``method`` is one of METHODS; ``alpha`` None finds it; ``heads`` is K; ``seed`` deals items into folds.

    ``check`` measures the chosen alpha by forward passes; without it, figures are first-order
    estimates and a subject costs a millisecond (``pas-reference`` always measures).
    """

    method: str = "palign"
    heads: int = 24
    alpha: float | None = None
    seed: int = 0
    check: bool = True

    def __post_init__(self) -> None:
        problems = list(number_problems(self.heads, self.alpha, self.seed))
        if self.method not in METHODS:
            problems.insert(0, f"method is {self.method!r}, wanted one of {', '.join(METHODS)}")
        if problems:
            raise InputError("; ".join(problems))


def number_problems(heads: int, alpha: float | None, seed: int) -> Iterator[str]:
    """What is wrong with numbers that every method takes."""
    if heads < 1:
        yield f"heads is {heads}, wanted at least 1"
    if alpha is not None and not 0 < alpha <= 100:
        yield f"alpha is {alpha}, wanted auto or a number above 0, at most 100"
    if not 0 <= seed < 2**32:
        yield f"seed is {seed}, wanted 0 to {2**32 - 1}"


def check_heads(count: int, model: OpenedModel) -> None:
    """Refuse more heads than the model has. Raises InputError."""
    most = model.num_layers * model.num_heads
    if count > most:
        raise InputError(f"--heads {count}: {model.base_model} has {most} heads in all")


def check_subject(subject: Subject) -> None:
    """Refuse answers that say nothing about a person. Raises InputError."""
    with naming(subject):
        check_agreement(subject.agreement)


@contextmanager
def naming(subject: Subject) -> Iterator[None]:
    """Say whose answers cannot be fitted: PersonaInvalid becomes an InputError with the name."""
    try:
        yield
    except PersonaInvalid as error:
        raise InputError(f"subject {subject.id!r}: {error.message}") from error


def shared_digest(
    model: OpenedModel, checkpoint: str, inventory: Inventory, used: Mask, settings: Settings
) -> str:
    """sha256 in hex of everything that all subjects of a fit share. ``checkpoint`` is the digest of the model's
    content; ``used`` bool [N]: items that directions are made with."""
    return key_digest(
        {
            "base_model": model.base_model,
            "checkpoint": checkpoint,
            "dtype": model_dtype(model),
            "prompt": prompts.chat_prefix(model.tokenizer, prompts.OPENINGS[0]),
            "inventory": [inventory.name, inventory.digest],
            "used": np.flatnonzero(used).tolist(),
            "usual": TYPICAL,
            "method": settings.method,
            "heads": settings.heads,
            "seed": settings.seed,
            "tool": tool(),
        }
    )
