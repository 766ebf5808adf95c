"""What a persona file says of its making. ``fit`` is free-form and untrusted: each value is looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_TRIALS = 50
_MAX_WARNINGS = 10


@dataclass(frozen=True)
class Point:
    """What one alpha did; None where it was not recorded.

    ``effect`` nats per token, ``alignment`` a correlation, ``perplexity`` of chats.
    """

    alpha: float
    effect: float | None
    alignment: float | None
    perplexity: float | None


@dataclass(frozen=True)
class FitRecord:
    """The readable part of ``fit``; None or empty where the file says nothing.

    ``estimated``: alignment, effect and perplexity are first-order estimates, not measured.
    """

    alignment: float | None
    rank: float | None
    effect: float | None
    perplexity: float | None
    perplexity_plain: float | None
    max_perplexity_ratio: float | None
    alpha_from: str
    answered: int | None
    items: int | None
    inventory: str
    score_name: str
    tool: str
    weak: bool
    estimated: bool
    trials: tuple[Point, ...]
    warnings: tuple[str, ...]

    @classmethod
    def read(cls, fit: Mapping[str, Any]) -> FitRecord:
        inventory = fit.get("inventory")
        inventory = inventory if isinstance(inventory, Mapping) else {}
        trials = [one for one in items(fit.get("alphas"), MAX_TRIALS) if isinstance(one, Mapping)]
        return cls(
            alignment=number(fit.get("alignment")),
            rank=number(fit.get("rank")),
            effect=number(fit.get("effect")),
            perplexity=positive(fit.get("perplexity")),
            perplexity_plain=positive(fit.get("perplexity_plain")),
            max_perplexity_ratio=positive(fit.get("max_perplexity_ratio")),
            alpha_from=text(fit.get("alpha_from")),
            answered=count(fit.get("answered")),
            items=count(inventory.get("items")),
            inventory=text(inventory.get("name")),
            score_name=text(fit.get("score"), 60) or "recorded score",
            tool=text(fit.get("tool")),
            weak=fit.get("weak") is True,
            estimated=fit.get("checked") is False,
            trials=tuple(sorted(filter(None, map(_point, trials)), key=lambda point: point.alpha)),
            warnings=tuple(
                shown
                for one in items(fit.get("warnings"), _MAX_WARNINGS)
                if (shown := text(one, 400))
            ),
        )

    @property
    def perplexity_ratio(self) -> float | None:
        """Perplexity of chats under the persona / plain."""
        if self.perplexity is None or self.perplexity_plain is None:
            return None
        return number(self.perplexity / self.perplexity_plain)


def _point(trial: Mapping[str, Any]) -> Point | None:
    alpha = number(trial.get("alpha"))
    if alpha is None:
        return None
    return Point(
        alpha=alpha,
        effect=number(trial.get("effect")),
        alignment=number(trial.get("alignment")),
        perplexity=positive(trial.get("perplexity")),
    )


def number(value: object) -> float | None:
    """A finite float of moderate size, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Compared as it is: an int of JSON may be too large for a float.
    return float(value) if abs(value) <= 1e12 and math.isfinite(value) else None


def positive(value: object) -> float | None:
    known = number(value)
    return known if known is not None and known > 1e-6 else None


def count(value: object) -> int | None:
    known = number(value)
    return int(known) if known is not None and known >= 0 and known == int(known) else None


def text(value: object, most: int = 120) -> str:
    """One printable line of at most ``most`` characters; empty for what is no string."""
    if not isinstance(value, str):
        return ""
    line = "".join(one if one.isprintable() else " " for one in value[: most + 1]).strip()
    return line if len(line) <= most else f"{line[: most - 1]}…"


def items(value: object, most: int) -> Sequence[Any]:
    """The first ``most`` of a list; empty for what is no list."""
    return value[:most] if isinstance(value, list) else []
