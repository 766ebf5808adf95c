"""Answers to persona: the top of the fitting half."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from palign_fit.alpha import (
    GRID,
    MAX_PERPLEXITY_RATIO,
    Method,
    Trial,
    Yardstick,
    choose_trial,
    search_alpha,
)
from palign_fit.answers import Subject
from palign_fit.contents import ContentMethod
from palign_fit.errors import FitError, InputError
from palign_fit.inventory import TRAITS, Inventory
from palign_fit.model import SubjectModel
from palign_fit.probes import SteeredHeads
from palign_fit.reference import ReferenceMethod
from vllm_palign.persona import Persona

METHODS: dict[str, type[ContentMethod] | type[ReferenceMethod]] = {
    ContentMethod.name: ContentMethod,
    ReferenceMethod.name: ReferenceMethod,
}
MIN_ANSWERED = 6
"""Fewest answers that leave two in every held-out fold. So few make a weak fit, and it says so."""


@dataclass(frozen=True)
class Settings:
    """How to fit. ``alpha`` None searches GRID; ``heads`` is K; ``seed`` deals items into folds."""

    method: str = "palign"
    heads: int = 24
    alpha: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.method not in METHODS:
            problems.append(f"method is {self.method!r}, wanted one of {', '.join(METHODS)}")
        if self.heads < 1:
            problems.append(f"heads is {self.heads}, wanted at least 1")
        if self.alpha is not None and not 0 < self.alpha <= 100:
            problems.append(f"alpha is {self.alpha}, wanted auto or a number above 0, at most 100")
        if not 0 <= self.seed < 2**32:
            problems.append(f"seed is {self.seed}, wanted 0 to {2**32 - 1}")
        if problems:
            raise InputError("; ".join(problems))


def check_subject(subject: Subject) -> None:
    """Refuse answers that say nothing about a person. Raises InputError."""
    values = subject.agreement[np.isfinite(subject.agreement)]
    if len(values) < MIN_ANSWERED:
        raise InputError(
            f"subject {subject.id!r}: {len(values)} answers, wanted at least {MIN_ANSWERED}, and 60 "
            "or more for a fit worth having; answer more items"
        )
    if (values == values[0]).all():
        raise InputError(
            f"subject {subject.id!r}: all {len(values)} answers are {values[0]:g}, which describes "
            "nobody; wanted different answers to different items"
        )


def fit_personas(
    model: SubjectModel,
    inventory: Inventory,
    subjects: Sequence[Subject],
    settings: Settings,
    *,
    prepare_tick: Callable[[int], None] = lambda _: None,
    alpha_tick: Callable[[int], None] = lambda _: None,
) -> Iterator[Persona]:
    """One persona a subject, in order; the model's activations are computed once for all.

    Raises InputError for subjects or settings that cannot be fitted, before any persona is made.
    """
    most = model.num_layers * model.num_heads
    if settings.heads > most:
        raise InputError(f"--heads {settings.heads}: {model.base_model} has {most} heads in all")
    for subject in subjects:
        check_subject(subject)
    method = METHODS[settings.method].prepare(model, inventory, settings.seed, prepare_tick)
    for subject in subjects:
        method.check(subject)
    yardstick = Yardstick.measure(model, inventory)
    if not (math.isfinite(yardstick.plain_perplexity) and np.isfinite(yardstick.plain).all()):
        raise FitError(f"{model.base_model}: gives NaN or Inf likelihoods; try --dtype float32")
    for subject in subjects:
        yield fit_persona(yardstick, method, subject, settings, tick=alpha_tick)


def fit_persona(
    yardstick: Yardstick,
    method: Method,
    subject: Subject,
    settings: Settings,
    *,
    tick: Callable[[int], None] = lambda _: None,
) -> Persona:
    """Directions and heads from all answers, then the alpha that held-out items ask for."""
    model = yardstick.model
    heads = method.fit(subject, np.isfinite(subject.agreement), settings.heads)
    if not heads.offsets.any():
        raise InputError(
            f"subject {subject.id!r}: the answers differ from the usual ones nowhere, or everywhere "
            "by the same amount; there is nothing to steer towards"
        )
    grid = GRID if settings.alpha is None else (settings.alpha,)
    trials = search_alpha(
        yardstick, method, subject, heads, grid=grid, seed=settings.seed, tick=tick
    )
    chosen = choose_trial(trials, yardstick.plain_perplexity)
    return Persona(
        name=subject.id,
        layers=heads.layers,
        heads=heads.heads,
        offsets=heads.offsets,
        alpha=chosen.alpha,
        base_model=model.base_model,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        head_dim=model.head_dim,
        method=method.name,
        fit=record(yardstick, method, subject, settings, heads, trials, chosen),
    )


def record(
    yardstick: Yardstick,
    method: Method,
    subject: Subject,
    settings: Settings,
    heads: SteeredHeads,
    trials: Sequence[Trial],
    chosen: Trial,
) -> dict[str, Any]:
    """What the file remembers of its making: no times, no paths, six significant digits."""
    inventory, plain = yardstick.inventory, yardstick.plain_perplexity
    notes = list(warnings(subject, inventory, chosen, plain))
    return {
        "alignment": _short(chosen.alignment),
        "alpha_from": "held-out items" if settings.alpha is None else "the user",
        "alphas": [{name: _short(value) for name, value in asdict(one).items()} for one in trials],
        "answered": subject.answered,
        "dtype": str(model_dtype(yardstick.model)),
        "effect": _short(chosen.effect),
        "inventory": {
            "digest": inventory.digest,
            "items": len(inventory.items),
            "name": inventory.name,
        },
        "max_perplexity_ratio": MAX_PERPLEXITY_RATIO,
        "perplexity": _short(chosen.perplexity),
        "perplexity_plain": _short(plain),
        "score": method.score_name,
        "scores": [_short(score) for score in heads.scores],
        "seed": settings.seed,
        "tool": f"palign-fit {version('vllm-palign')}",
        "warnings": notes,
        "weak": is_weak(chosen.alignment, subject.answered),
    }


def is_weak(alignment: float, answered: int) -> bool:
    """Whether a held-out correlation over ``answered`` items could be chance (one-sided 5 %)."""
    return alignment < 1.645 / math.sqrt(answered)


def warnings(
    subject: Subject, inventory: Inventory, chosen: Trial, plain_perplexity: float
) -> Iterator[str]:
    """What a user should know before trusting this persona."""
    if is_weak(chosen.alignment, subject.answered):
        yield (
            f"weak: held-out alignment {chosen.alignment:.2f} over {subject.answered} items could "
            "be chance; answer more items, or use a larger model"
        )
    if chosen.perplexity > MAX_PERPLEXITY_RATIO * plain_perplexity:
        yield (
            f"alpha {chosen.alpha:g} raises the perplexity of neutral text from "
            f"{plain_perplexity:.1f} to {chosen.perplexity:.1f}; answers may lose fluency"
        )
    answered = np.isfinite(subject.agreement)
    seen = {item.trait for item, has in zip(inventory.items, answered, strict=True) if has}
    missing = [trait for trait in TRAITS if trait not in seen]
    if missing:
        yield f"no answers on {' '.join(missing)}: taken as average there"


def model_dtype(model: SubjectModel) -> str:
    """The model's parameter dtype, such as "bfloat16"."""
    return str(model.model.dtype).removeprefix("torch.")


def _short(value: float) -> float:
    """Six significant digits: enough to read, too few to carry noise of the last bit."""
    return float(f"{value:.6g}")
