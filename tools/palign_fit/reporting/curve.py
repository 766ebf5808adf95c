"""Effect and perplexity over alpha, in px. Colours and words are the templates' business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palign_fit.reporting.axis import Axis, Tick
from palign_fit.reporting.record import Point


@dataclass(frozen=True)
class Panel:
    """One quantity over alpha. ``line`` is an SVG path, ``dots`` (x, y, alpha, value)."""

    top: float
    bottom: float
    rows: tuple[Tick, ...]
    line: str
    dots: tuple[tuple[float, float, float, float], ...]
    plain: float | None
    bound: float | None

    @classmethod
    def of(
        cls,
        places: Axis,
        pairs: Sequence[tuple[float, float]],
        top: float,
        plain: float | None = None,
        bound: float | None = None,
    ) -> Panel:
        """``pairs`` of alpha and value, at least one; ``plain`` and ``bound`` are drawn across."""
        bottom = top + 120
        drawn = [value for _, value in pairs] + [one for one in (plain, bound) if one is not None]
        axis = Axis.over(drawn, bottom - 6, top + 6, most=4)
        dots = tuple(
            (places.place(alpha), axis.place(value), alpha, value) for alpha, value in pairs
        )
        return cls(
            top=top,
            bottom=bottom,
            rows=tuple(axis.ticks),
            line="M" + "L".join(f"{x} {y}" for x, y, _, _ in dots),
            dots=dots,
            plain=None if plain is None else axis.place(plain),
            bound=None if bound is None else axis.place(bound),
        )


@dataclass(frozen=True)
class AlphaChart:
    """Effect above, perplexity below, over the same alphas; ``chosen`` is the file's own alpha."""

    width: float
    height: float
    left: float
    right: float
    columns: tuple[Tick, ...]
    chosen: float | None
    effect: Panel | None
    perplexity: Panel | None

    @classmethod
    def of(
        cls, points: Sequence[Point], alpha: float, plain: float | None, ratio: float | None
    ) -> AlphaChart | None:
        """None with fewer than two points. ``plain``: perplexity unsteered; ``ratio``: most of it."""
        effects = [(one.alpha, one.effect) for one in points if one.effect is not None]
        drifts = [(one.alpha, one.perplexity) for one in points if one.perplexity is not None]
        if max(len(effects), len(drifts)) < 2:
            return None
        left, right, top = 56.0, 428.0, 24.0
        alphas = [one.alpha for one in points]
        places = Axis.over([0.0, *alphas], left, right, most=8)
        effect = Panel.of(places, effects, top) if effects else None
        top = effect.bottom + 44 if effect else top
        bound = plain * ratio if plain and ratio else None
        drift = Panel.of(places, drifts, top, plain, bound) if drifts else None
        last = drift or effect
        return cls(
            width=440.0,
            height=(last.bottom if last else top) + 40,
            left=left,
            right=right,
            columns=tuple(places.ticks),
            chosen=places.place(alpha) if places.low <= alpha <= places.high else None,
            effect=effect,
            perplexity=drift,
        )
