"""What a persona file remembers of its making: no times, no paths, six significant digits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from palign_fit.inputs.answers import Subject
from palign_fit.inputs.inventory import Inventory
from palign_fit.inputs.traits import TRAITS
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

    ``score`` says what the heads' scores are; ``reach`` how much of the alpha that perplexity allows was
    taken.
    """

    subject: Subject
    method: str
    heads: SteeredHeads
    score: str
    trials: Sequence[Trial]
    chosen: Trial
    checked: bool
    plain_perplexity: float
    max_ratio: float
    reach: float = 1.0

    def persona(self, model: OpenedModel, inventory: Inventory, settings: Settings) -> Persona:
        """The persona file's content."""
        return Persona(
            name=self.subject.id,
            layers=self.heads.layers,
            heads=self.heads.heads,
            offsets=self.heads.offsets,
            alpha=self.chosen.alpha,
            base_model=model.base_model,
            num_layers=model.num_layers,
            num_heads=model.num_heads,
            head_dim=model.head_dim,
            method=self.method,
            fit=self._record(model, inventory, settings),
        )

    def _record(
        self, model: OpenedModel, inventory: Inventory, settings: Settings
    ) -> dict[str, Any]:
        subject, chosen = self.subject, self.chosen
        answered = np.isfinite(subject.agreement)
        return {
            "alignment": short(chosen.alignment),
            "alpha_from": self._alpha_from() if settings.alpha is None else "the user",
            "alphas": [
                {name: short(value) for name, value in asdict(one).items()} for one in self.trials
            ],
            "answered": subject.answered,
            "checked": self.checked,
            "dtype": model_dtype(model),
            "effect": short(chosen.effect),
            "inventory": {
                "digest": inventory.digest,
                "items": len(inventory.items),
                "name": inventory.name,
            },
            "items": [item.id for item, has in zip(inventory.items, answered, strict=True) if has],
            "max_perplexity_ratio": self.max_ratio,
            "perplexity": short(chosen.perplexity),
            "perplexity_plain": short(self.plain_perplexity),
            "score": self.score,
            "scores": [short(score) for score in self.heads.scores],
            "seed": settings.seed,
            "tool": f"palign-fit {version('vllm-palign')}",
            "warnings": list(self._warnings(inventory)),
            "weak": is_weak(chosen.alignment, subject.answered),
        }

    def _alpha_from(self) -> str:
        if self.reach == 1:
            return "perplexity"
        return f"{self.reach:g} x what perplexity allows; statements follow no further"

    def _warnings(self, inventory: Inventory) -> Iterator[str]:
        """What a user should know before trusting this persona."""
        chosen, plain, subject = self.chosen, self.plain_perplexity, self.subject
        if is_weak(chosen.alignment, subject.answered):
            yield (
                f"weak: held-out alignment {chosen.alignment:.2f} over {subject.answered} items "
                "could be chance; answer more items, or use a larger model"
            )
        if chosen.perplexity > self.max_ratio * plain:
            yield (
                f"alpha {chosen.alpha:g} raises the perplexity of neutral text from {plain:.1f} to "
                f"{chosen.perplexity:.1f}; answers may lose fluency"
            )
        answered = np.isfinite(subject.agreement)
        seen = {item.trait for item, has in zip(inventory.items, answered, strict=True) if has}
        missing = [trait for trait in TRAITS if trait not in seen]
        if missing:
            yield f"no answers on {' '.join(missing)}: taken as average there"


def is_weak(alignment: float, answered: int) -> bool:
    """Whether a held-out correlation over ``answered`` items could be chance (one-sided 5 %)."""
    return alignment < 1.645 / math.sqrt(answered)


def effect(change: np.ndarray, wanted: np.ndarray) -> float:
    """Mean change in the wanted direction; centred, so that agreeing with everything counts nothing."""
    centred = wanted - wanted.mean()
    total = np.abs(centred).sum()
    return float((change * centred).sum() / total) if total else 0.0


def short(value: float) -> float:
    """Six significant digits: enough to read, too few to carry noise of the last bit."""
    return float(f"{value:.6g}")
