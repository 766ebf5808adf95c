"""Charts of one persona, as places in px: a value axis, effect and perplexity over alpha, trait scores around a
centre. Colours and words are the templates' business."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from palign_fit.reporting.record import Point


@dataclass(frozen=True)
class Tick:
    """``place`` in px, and what is written there."""

    place: float
    label: str


@dataclass(frozen=True)
class Axis:
    """Values ``low`` to ``high`` on the pixels ``start`` to ``end``; ``step`` between ticks."""

    low: float
    high: float
    step: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, most: int = 5) -> Axis:
        """Round numbers around ``values`` (one at least), at most about ``most`` ticks."""
        known = list(values)
        low, high = min(known), max(known)
        if high - low < 1e-9 * max(abs(high), 1.0):
            low, high = low - max(abs(low), 1.0) * 0.05, high + max(abs(high), 1.0) * 0.05
        step = _round_step((high - low) / most)
        return cls(math.floor(low / step) * step, math.ceil(high / step) * step, step, start, end)

    def place(self, value: float) -> float:
        """px of ``value``, to a tenth."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[Tick]:
        count = round((self.high - self.low) / self.step)
        values = [self.low + place * self.step for place in range(count + 1)]
        return [Tick(self.place(value), self._label(value)) for value in values]

    def _label(self, value: float) -> str:
        if abs(self.high) >= 1e5 or abs(self.low) >= 1e5:
            return f"{value:.2g}"
        digits = max(0, -math.floor(math.log10(self.step)))
        # Adding 0 turns -0.0 into 0.
        return f"{round(value, digits) + 0:.{digits}f}".replace("-", "−")


def _round_step(raw: float) -> float:
    """The next of 1, 2, 5 x 10^n from ``raw`` on."""
    power = 10.0 ** math.floor(math.log10(raw))
    return next(one * power for one in (1, 2, 5, 10) if one * power >= raw * (1 - 1e-9))


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


@dataclass(frozen=True)
class Spoke:
    """One axis of a radar: its end and its label's place."""

    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str
    label: str


@dataclass(frozen=True)
class Shape:
    """One profile: an SVG path of straight lines, and its corners. ``kind`` names its style."""

    kind: str
    path: str
    corners: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Radar:
    """Trait scores 1 (centre) to 5 (rim), the first straight up, on clockwise."""

    width: float
    height: float
    centre: tuple[float, float]
    rings: tuple[str, ...]
    ring_labels: tuple[Tick, ...]
    spokes: tuple[Spoke, ...]
    shapes: tuple[Shape, ...]

    @classmethod
    def of(
        cls, labels: Sequence[str], profiles: Sequence[tuple[str, Sequence[float | None]]]
    ) -> Radar:
        """``profiles``: (kind, a score for every label); one that lacks a score is left out."""
        x0, y0, radius = 212.0, 136.0, 104.0

        def at(place: int, share: float) -> tuple[float, float]:
            angle = 2 * math.pi * place / len(labels)
            return (
                round(x0 + math.sin(angle) * radius * share, 1),
                round(y0 - math.cos(angle) * radius * share, 1),
            )

        def outline(shares: Sequence[float]) -> tuple[tuple[float, float], ...]:
            return tuple(at(place, share) for place, share in enumerate(shares))

        spokes = []
        for place, label in enumerate(labels):
            (x, y), (label_x, label_y) = at(place, 1), at(place, 1.1)
            side = label_x - x0
            anchor = "middle" if abs(side) < 1 else "start" if side > 0 else "end"
            spokes.append(
                Spoke(x, y, label_x, label_y + (0 if anchor == "middle" else 4), anchor, label)
            )
        shapes = []
        for kind, scores in profiles:
            known = [min(max(one, 1.0), 5.0) for one in scores if one is not None]
            if len(known) == len(labels):
                corners = outline([(one - 1) / 4 for one in known])
                shapes.append(Shape(kind, _closed(corners), corners))
        return cls(
            width=440.0,
            height=250.0,
            centre=(x0, y0),
            rings=tuple(_closed(outline([n / 4] * len(labels))) for n in (1, 2, 3, 4)),
            ring_labels=tuple(Tick(at(0, n / 4)[1], str(n + 1)) for n in (1, 2, 3, 4)),
            spokes=tuple(spokes),
            shapes=tuple(shapes),
        )


def _closed(corners: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in corners) + "Z"
