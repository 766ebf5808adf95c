"""What a persona file remembers of its making: no answers, no times, no paths, six significant digits."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from vllm_palign.directions.basis import SteeredHeads
from vllm_palign.directions.budget import MAX_RATIO, strongest
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.norm import RARE
from vllm_palign.directions.numbers import Reals, short
from vllm_palign.directions.scores import FULL
from vllm_palign.directions.traits import TRAITS
from vllm_palign.persona import Persona

SCORE = "correlation on other questionnaires"
"""What the scores of heads are, of answers and of trait values."""

FEW = 30
"""Answers below which a persona says that there are few."""

SAME = 0.8
"""Share of equal answers from which a persona says so."""


@dataclass(frozen=True)
class ModelFacts:
    """What a persona says of the model it is for. ``dtype``: what it computed in while it was read, such as
    "float32, gradients bfloat16"."""

    base_model: str
    num_layers: int
    num_heads: int
    head_dim: int
    dtype: str


@dataclass(frozen=True)
class Trial:
    """What one alpha does on held-out items.

    ``effect`` nats per token: how much likelier statements get that the subject agrees with than
    ones they disagree with, weighted by how far each answer is from the usual one. ``alignment``:
    correlation of the likelihood change with that distance. ``rank``: share of people (``norm``) who would
    do as well: whose personas follow the subject, or in the published method whom this one follows. ``perplexity`` of chats.
    """

    alpha: float
    effect: float
    alignment: float
    rank: float
    perplexity: float


@dataclass(frozen=True, eq=False)
class Fit:
    """A finished fit of one person's ``agreement``, float64 [N]. ``checked``: the chosen trial is of real
    forward passes.

    ``score`` says what the heads' scores are; ``most`` is the largest alpha the method chooses; ``reach``
    how much of the alpha that perplexity allows statements follow, ``share`` how much of that the answers
    given carry. ``expected``: the alignment to expect on statements nobody answered, None where it is not
    known. ``given``: the user chose alpha. ``max_strength`` by real passes, None: expected. ``learned``: number of items whose texts and keys directions know.
    """

    name: str
    agreement: Reals
    method: str
    heads: SteeredHeads
    score: str
    trials: Sequence[Trial]
    chosen: Trial
    checked: bool
    plain_perplexity: float
    most: float
    seed: int
    given: bool = False
    reach: float = 1.0
    share: float = 1.0
    learned: int | None = None
    expected: float | None = None
    max_strength: float | None = None

    def persona(
        self, model: ModelFacts, inventory: Inventory, *, description: str = "", listed: bool
    ) -> Persona:
        """The persona file's content. ``listed``: it says which items were answered, from which an
        evaluation tells what is held out."""
        chosen = self.chosen
        answered = np.isfinite(self.agreement)
        fit: dict[str, Any] = {
            "alignment": short(chosen.alignment),
            "alpha_from": "the user" if self.given else self._alpha_from(),
            "alphas": [
                {name: short(value) for name, value in asdict(trial).items()}
                for trial in self.trials
            ],
            "answered": self.answered,
            "checked": self.checked,
            "effect": short(chosen.effect),
            "inventory": {
                "digest": inventory.digest,
                "items": len(inventory.items),
                "name": inventory.name,
            },
            "rank": short(chosen.rank),
            "seed": self.seed,
        }
        if self.expected is not None:
            fit["expected_alignment"] = short(self.expected)
        if self.learned is not None:
            fit["inventory"]["learned"] = self.learned
        if listed:
            fit["items"] = [
                item.id for item, has in zip(inventory.items, answered, strict=True) if has
            ]
        return new_persona(
            model,
            self.heads,
            name=self.name,
            description=description,
            method=self.method,
            alpha=chosen.alpha,
            perplexity=(chosen.perplexity, self.plain_perplexity),
            score=self.score,
            warnings=self._warnings(inventory),
            weak=chosen.rank > RARE,
            fit=fit,
            max_strength=self.max_strength,
        )

    @property
    def answered(self) -> int:
        return int(np.isfinite(self.agreement).sum())

    def _alpha_from(self) -> str:
        said = "perplexity"
        if self.reach != 1:
            said = f"{self.reach:g} x what perplexity allows; statements follow no further"
        if self.share < 0.995:
            said += f"; of that {self.share:.2f}, for the answers that are missing"
        return said

    def _warnings(self, inventory: Inventory) -> Iterator[str]:
        """What a user should know before trusting this persona."""
        chosen, plain = self.chosen, self.plain_perplexity
        values = self.agreement[np.isfinite(self.agreement)]
        if chosen.rank > RARE:
            yield (
                f"weak: held-out alignment {chosen.alignment:.2f} over {self.answered} items, and personas of "
                f"{chosen.rank:.0%} of other people follow them as well; answer more items, or use a larger model"
            )
        if self.answered < min(FEW, len(inventory.items)):
            yield (
                f"only {self.answered} answers: traits are taken nearer to the usual and the persona is as "
                f"strong as they carry; {FULL} a trait make a whole questionnaire"
            )
        count = max(int((values == value).sum()) for value in np.unique(values))
        if count >= SAME * len(values):
            yield f"{count} of {len(values)} answers are the same: they say little about a person"
        yield from costly(chosen.alpha, chosen.perplexity, plain)
        if not self.given:
            yield from stopped(chosen.alpha, self.most)
        answered = np.isfinite(self.agreement)
        missing = [
            trait
            for trait, own in zip(TRAITS, inventory.of_trait, strict=True)
            if not (own & answered).any()
        ]
        if missing:
            yield f"no answers on {' '.join(missing)}: taken as average there"


def new_persona(
    model: ModelFacts,
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
    max_strength: float | None = None,
) -> Persona:
    """A persona of any method: ``fit`` is what this one has to say beside what all record.

    ``perplexity`` of chats, steered and plain; ``score`` says what the heads' scores are. ``max_strength``
    None is expected from ``perplexity``.
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
            "dtype": model.dtype,
            "max_perplexity_ratio": MAX_RATIO,
            "max_strength": max_strength or strongest(perplexity[0] / perplexity[1]),
            "perplexity": short(perplexity[0]),
            "perplexity_plain": short(perplexity[1]),
            "score": score,
            "scores": [short(value) for value in steering.scores],
            "tool": tool(),
            "warnings": list(warnings),
            "weak": weak,
            **fit,
        },
    )


@functools.cache
def tool() -> str:
    """The release that wrote a file."""
    return f"palign-fit {version('vllm-palign')}"


def costly(alpha: float, perplexity: float, plain: float) -> Iterator[str]:
    """A warning where chats suffer more than they should."""
    if perplexity > MAX_RATIO * plain:
        yield (
            f"alpha {alpha:g} raises the perplexity of chats from {plain:.1f} to "
            f"{perplexity:.1f}; answers may lose fluency"
        )


def stopped(alpha: float, most: float) -> Iterator[str]:
    """A warning where alpha is the largest that a method chooses by itself."""
    if alpha >= most:
        yield (
            f"alpha stops at {most:g}, the most that is tried; chats bear more, so the persona may be "
            "weaker than it could be: give a larger --alpha, or a strength above 1 when serving"
        )
