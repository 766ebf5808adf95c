"""What a persona file remembers of its making: no times, no paths, six significant digits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from palign_fit.arrays import short
from palign_fit.inputs.answers import Subject
from palign_fit.inputs.inventory import Inventory
from palign_fit.inputs.traits import TRAITS
from palign_fit.methods.budget import MAX_RATIO
from palign_fit.methods.settings import Settings
from palign_fit.methods.steering import SteeredHeads
from palign_fit.model.model import OpenedModel, model_dtype
from vllm_palign.persona import Persona


@dataclass(frozen=True)
class Trial:
    """What one alpha does on held-out items.

    ``effect`` nats per token: how much likelier statements get that the subject agrees with than
    ones they disagree with, weighted by how far each answer is from the usual one. ``alignment``:
    correlation of the likelihood change with that distance. ``perplexity`` of neutral text.
    """

    alpha: float
    effect: float
    alignment: float
    perplexity: float


@dataclass(frozen=True, eq=False)
class Fit:
    """A finished fit of one subject. ``checked``: the chosen trial is of real forward passes.

    ``score`` says what the heads' scores are; ``most`` is the largest alpha the method chooses; ``reach``
    how much of the alpha that perplexity allows was taken.
    """

    subject: Subject
    method: str
    heads: SteeredHeads
    score: str
    trials: Sequence[Trial]
    chosen: Trial
    checked: bool
    plain_perplexity: float
    most: float
    reach: float = 1.0

    def persona(self, model: OpenedModel, inventory: Inventory, settings: Settings) -> Persona:
        """The persona file's content."""
        subject, chosen = self.subject, self.chosen
        answered = np.isfinite(subject.agreement)
        return new_persona(
            model,
            self.heads,
            name=subject.id,
            method=self.method,
            alpha=chosen.alpha,
            perplexity=(chosen.perplexity, self.plain_perplexity),
            score=self.score,
            warnings=self._warnings(inventory, settings),
            weak=is_weak(chosen.alignment, subject.answered),
            fit={
                "alignment": short(chosen.alignment),
                "alpha_from": self._alpha_from() if settings.alpha is None else "the user",
                "alphas": [
                    {name: short(value) for name, value in asdict(trial).items()}
                    for trial in self.trials
                ],
                "answered": subject.answered,
                "checked": self.checked,
                "effect": short(chosen.effect),
                "inventory": {
                    "digest": inventory.digest,
                    "items": len(inventory.items),
                    "name": inventory.name,
                },
                "items": [
                    item.id for item, has in zip(inventory.items, answered, strict=True) if has
                ],
                "seed": settings.seed,
            },
        )

    def _alpha_from(self) -> str:
        if self.reach == 1:
            return "perplexity"
        return f"{self.reach:g} x what perplexity allows; statements follow no further"

    def _warnings(self, inventory: Inventory, settings: Settings) -> Iterator[str]:
        """What a user should know before trusting this persona."""
        chosen, plain, subject = self.chosen, self.plain_perplexity, self.subject
        if is_weak(chosen.alignment, subject.answered):
            yield (
                f"weak: held-out alignment {chosen.alignment:.2f} over {subject.answered} items "
                "could be chance; answer more items, or use a larger model"
            )
        yield from costly(chosen.alpha, chosen.perplexity, plain)
        if settings.alpha is None:
            yield from stopped(chosen.alpha, self.most)
        answered = np.isfinite(subject.agreement)
        seen = {item.trait for item, has in zip(inventory.items, answered, strict=True) if has}
        missing = [trait for trait in TRAITS if trait not in seen]
        if missing:
            yield f"no answers on {' '.join(missing)}: taken as average there"


def new_persona(
    model: OpenedModel,
    steering: SteeredHeads,
    *,
    name: str,
    method: str,
    alpha: float,
    perplexity: tuple[float, float],
    score: str,
    warnings: Iterable[str],
    weak: bool,
    fit: Mapping[str, Any],
    description: str = "",
) -> Persona:
    """A persona of any method: ``fit`` is what this one has to say beside what all record.

    ``perplexity`` of neutral text, steered and plain; ``score`` says what the heads' scores are.
    """
    return Persona(
        name=name,
        description=description,
        layers=steering.layers,
        heads=steering.heads,
        offsets=steering.offsets,
        alpha=alpha,
        base_model=model.base_model,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        head_dim=model.head_dim,
        method=method,
        fit={
            "dtype": model_dtype(model),
            "max_perplexity_ratio": MAX_RATIO,
            "perplexity": short(perplexity[0]),
            "perplexity_plain": short(perplexity[1]),
            "score": score,
            "scores": [short(value) for value in steering.scores],
            "tool": f"palign-fit {version('vllm-palign')}",
            "warnings": list(warnings),
            "weak": weak,
            **fit,
        },
    )


def costly(alpha: float, perplexity: float, plain: float) -> Iterator[str]:
    """A warning where neutral text suffers more than it should."""
    if perplexity > MAX_RATIO * plain:
        yield (
            f"alpha {alpha:g} raises the perplexity of neutral text from {plain:.1f} to "
            f"{perplexity:.1f}; answers may lose fluency"
        )


def stopped(alpha: float, most: float) -> Iterator[str]:
    """A warning where alpha is the largest that a method chooses by itself."""
    if alpha >= most:
        yield (
            f"alpha stops at {most:g}, the most that is tried; text bears more, so the persona may be "
            "weaker than it could be: give a larger --alpha, or a strength above 1 when serving"
        )


def is_weak(alignment: float, answered: int) -> bool:
    """Whether a held-out correlation over ``answered`` items could be chance (one-sided 5 %)."""
    return alignment < 1.645 / math.sqrt(answered)


def effect(change: np.ndarray, wanted: np.ndarray) -> float:
    """Mean change in the wanted direction; centred, so that agreeing with everything counts nothing."""
    centred = wanted - wanted.mean()
    total = np.abs(centred).sum()
    return float((change * centred).sum() / total) if total else 0.0
