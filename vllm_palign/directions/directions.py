"""The directions file, and what it makes: persons from answers or from trait values, in a millisecond."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_palign.directions.basis import Basis, SteeredHeads
from vllm_palign.directions.budget import MAX_RATIO, Budget, rounded
from vllm_palign.directions.inventory import COLUMNS, SCALE, Inventory
from vllm_palign.directions.norm import NormSample
from vllm_palign.directions.numbers import Mask, Reals, correlation, effect, short
from vllm_palign.directions.people import FORMS
from vllm_palign.directions.record import SCORE, Fit, ModelFacts, Trial
from vllm_palign.directions.scores import check_agreement, deviations, expected_share
from vllm_palign.directions.sheet import agreement_of, trait_values
from vllm_palign.directions.sliders import of_values, trait_persona, wanted_alpha
from vllm_palign.directions.strangers import changes
from vllm_palign.directions.traits import TRAITS
from vllm_palign.errors import DirectionsInvalid, PersonaInvalid
from vllm_palign.persona import MAX_COUNT, Persona

METHOD = "palign"

FOLDS = 3
"""Each third of the items under directions that know neither their answers nor their texts."""

PARTS = ("whole", *(f"fold{fold}" for fold in range(FOLDS)), "traits")
"""The bases of one file."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Everything that no person changes, of one model and one inventory; checked on construction.

    ``whole`` makes offsets from answers; ``blind`` the same without the items of each of ``folds``, int32
    [N], which measures them; ``traits`` knows the shipped sentences only, and measures trait values.
    ``followed`` float64 [5, R]: how well held-out statements follow typical people of each trait, a
    correlation by real forward passes, at each of ``doses`` of the alpha that chats bear; ``reach`` is
    the dose that is taken. ``order``: places of the most telling items. ``made_with``: digest of the weights,
    texts and settings behind all this; ``digest``: sha256 of the file these were read from, empty where they were just made. Raises
    DirectionsInvalid, listing every problem found.
    """

    model: ModelFacts
    made_with: str
    whole: Basis
    blind: tuple[Basis, ...]
    traits: Basis
    folds: npt.NDArray[np.int32]
    budget: Budget
    reach: float
    doses: tuple[float, ...]
    followed: Reals
    order: tuple[int, ...]
    seed: int
    tool: str
    digest: str = ""

    def __post_init__(self) -> None:
        # As the file keeps them: a persona must not depend on whether the file lay between.
        object.__setattr__(self, "followed", np.vectorize(short, [float])(self.followed))
        problems = list(_problems(self))
        if problems:
            raise DirectionsInvalid("directions are not valid: " + "; ".join(problems))

    @property
    def inventory(self) -> Inventory:
        return self.whole.inventory

    @property
    def base_model(self) -> str:
        return self.model.base_model

    @property
    def num_layers(self) -> int:
        return self.model.num_layers

    @property
    def num_heads(self) -> int:
        return self.model.num_heads

    @property
    def head_dim(self) -> int:
        return self.model.head_dim

    @property
    def layers(self) -> npt.NDArray[np.int32]:
        """Layers of the heads that a persona of these directions steers: int32 [K]."""
        return self.whole.layers

    def from_answers(self, name: str, answers: Mapping[str, Any], description: str = "") -> Persona:
        """The persona of ``answers``, item id -> 1 to 5, null or 0 for missing. It does not say what was
        answered. Raises PersonaInvalid, naming every problem."""
        fit = self.fit(name, agreement_of(answers, self.inventory))
        return fit.persona(self.model, self.inventory, description=description, listed=False)

    def from_traits(self, name: str, values: Mapping[str, Any], description: str = "") -> Persona:
        """The persona of trait values in standard deviations, by letter or name, at most 3 either way and not
        all 0; figures are first-order estimates. Raises PersonaInvalid, naming every problem."""
        given = trait_values(values)
        heads, disturbance, _ = of_values(self.whole, given)
        wanted = wanted_alpha(self.budget.alpha(disturbance, self.reach), given)
        alpha = min(rounded(wanted), self.budget.alpha(disturbance, ratio=MAX_RATIO))
        _, _, change = of_values(self.traits, given)
        return trait_persona(
            self.model,
            heads,
            name,
            given,
            description=description,
            alpha=alpha,
            wanted=wanted,
            perplexity=self.budget.predicted(alpha, disturbance),
            budget=self.budget,
            change=alpha * change,
            inventory=self.inventory,
        )

    def fit(self, name: str, agreement: Reals, alpha: float | None = None) -> Fit:
        """First-order fit of ``agreement`` float64 [N]. ``alpha`` None finds it. Raises PersonaInvalid for
        answers that say nothing."""
        check_agreement(agreement)
        weights = self.whole.weights(agreement)
        heads, scale = self.whole.steering(weights)
        if scale == 0:
            raise PersonaInvalid(
                "the answers differ from the usual ones nowhere, or "
                "everywhere by the same amount; there is nothing to steer towards"
            )
        disturbance = self.whole.disturbance(weights, scale)
        share = expected_share(agreement, self.inventory, self.whole.rows)
        chosen = self.budget.alpha(disturbance, self.reach * share) if alpha is None else alpha
        perplexity = self.budget.predicted(chosen, disturbance)
        change = np.zeros(len(agreement))
        for rows, blind in self.held_out(agreement):
            own = blind.weights(agreement)
            size = blind.size(own)
            if size > 0:
                change[rows] = chosen * blind.change(own, size)[rows]
        trial = self.trial(agreement, chosen, perplexity, change)
        return self.record(
            name, agreement, heads, trial, given=alpha is not None, share=share, checked=False
        )

    def trial(self, agreement: Reals, alpha: float, perplexity: float, change: Reals) -> Trial:
        """What ``alpha`` does: ``change`` float64 [N] of the log-likelihood of every answered item, under directions
        that do not know it."""
        answered = np.isfinite(agreement)
        deviation = deviations(agreement, self.inventory)
        away = deviation[answered]
        alignment = correlation(change[answered], away)
        return Trial(
            alpha=alpha,
            effect=effect(change[answered], away),
            alignment=alignment,
            rank=self.strangers.rank(deviation, answered, alignment),
            perplexity=perplexity,
        )

    @cached_property
    def strangers(self) -> NormSample:
        """What other people's personas do to each item, under directions that do not know it."""
        return changes(self.blind, self.folds)

    def held_out(self, agreement: Reals) -> Iterator[tuple[Mask, Basis]]:
        """Answered items of each fold, bool [N], and the directions that do not know them."""
        for fold, blind in enumerate(self.blind):
            rows = np.isfinite(agreement) & (self.folds == fold)
            if rows.any():
                yield rows, blind

    def record(
        self,
        name: str,
        agreement: Reals,
        heads: SteeredHeads,
        trial: Trial,
        *,
        given: bool,
        share: float,
        checked: bool,
    ) -> Fit:
        """What a fit of these directions remembers."""
        return Fit(
            name=name,
            agreement=agreement,
            method=METHOD,
            heads=heads,
            score=SCORE,
            trials=[trial],
            chosen=trial,
            checked=checked,
            plain_perplexity=self.budget.plain,
            most=self.budget.most(self.reach),
            seed=self.seed,
            given=given,
            reach=self.reach,
            share=share,
            learned=int(self.whole.rows.sum()),
            expected=None if given or math.isnan(self.expected) else self.expected * share,
        )

    @cached_property
    def expected(self) -> float:
        """The alignment to expect of a whole questionnaire on statements that nobody answered: how well
        statements follow the model's typical people at the dose that is taken, mean over traits. Real people's
        came to the same (docs/experiments/few-answers.md). NaN where nothing was measured."""
        dose = self.doses.index(self.reach)
        known = self.followed[np.isfinite(self.followed[:, dose]), dose]
        return float(known.mean()) if len(known) else math.nan

    def questionnaire(self) -> dict[str, Any]:
        """The body of ``GET /v1/questionnaire``: what a form needs. ``usual`` is what people answer, by item."""
        ids = [item.id for item in self.inventory.items]
        telling = [ids[place] for place in self.order]
        return {
            "object": "list",
            "data": [dict(zip(COLUMNS, row, strict=True)) for row in self.inventory.rows()],
            "scale": SCALE,
            "short": {str(count): telling[:count] for count in FORMS},
            "usual": {
                name: short(value)
                for name, value in zip(ids, self.inventory.usual.tolist(), strict=True)
            },
        }

    @property
    def parts(self) -> dict[str, Basis]:
        """The bases by their names in the file."""
        return dict(zip(PARTS, (self.whole, *self.blind, self.traits), strict=True))


def _problems(found: Directions) -> Iterable[str]:
    """Every rule of the format that ``found`` breaks."""
    model, count = found.model, len(found.inventory.items)
    for name in ("num_layers", "num_heads", "head_dim"):
        if not 1 <= getattr(model, name) <= MAX_COUNT:
            yield f"{name} is {str(getattr(model, name))[:40]}, wanted 1 to {MAX_COUNT}"
            return
    numbers = (found.budget.plain, found.budget.rate, found.reach)
    if not all(math.isfinite(value) for value in numbers) or found.budget.plain <= 0:
        yield f"perplexity_plain, rate and reach are {numbers}, wanted finite numbers"
    if found.budget.rate < 0:
        yield f"rate is {found.budget.rate}, wanted 0 or more"
    if found.reach not in found.doses:
        yield f"reach is {found.reach}, wanted one of the doses {list(found.doses)}"
    if not 0 < found.reach <= 1:
        yield f"reach is {found.reach}, wanted more than 0, at most 1"
    if not 0 <= found.seed < 2**32:
        yield f"seed is {found.seed}, wanted 0 to {2**32 - 1}"
    for part, basis in found.parts.items():
        yield from (
            f"{part}: {problem}"
            for problem in _basis_problems(basis, model, count, 0 if part == "traits" else count)
        )


def _basis_problems(basis: Basis, model: ModelFacts, count: int, single: int) -> Iterable[str]:
    """What is wrong with a basis for ``count`` items, ``single`` of which have directions of their own."""
    heads, dim = len(basis.layers), model.head_dim
    weights = len(TRAITS) + single
    shapes = {
        "layers": (heads,),
        "heads": (heads,),
        "scores": (heads,),
        "basis": (weights, heads, dim),
        "response": (weights, count),
        "quadratic": (weights, weights),
        "covariance": (heads, dim, dim),
    }
    wrong = False
    for name, shape in shapes.items():
        array = getattr(basis, name)
        if array.shape != shape:
            wrong = True
            yield f"{name} is {list(array.shape)}, wanted {list(shape)}"
        elif array.dtype == np.float32 and not np.isfinite(array).all():
            yield f"{name} holds NaN or Inf, wanted finite numbers"
    if wrong:
        return
    if (np.einsum("kdd->kd", basis.covariance) < 0).any():
        yield "covariance holds negative variances"
    if not 1 <= heads <= model.num_layers * model.num_heads:
        yield f"{heads} steered heads, wanted 1 to {model.num_layers * model.num_heads}"
        return
    for name, end in (("layers", model.num_layers), ("heads", model.num_heads)):
        array = getattr(basis, name)
        outside = array[(array < 0) | (array >= end)]
        if len(outside):
            yield f"{name} holds {int(outside[0])}, wanted 0 to {end - 1}"
    order = basis.layers.astype(np.int64) * model.num_heads + basis.heads
    if (np.diff(order) <= 0).any():
        yield "pairs of layers and heads are not unique and sorted"
