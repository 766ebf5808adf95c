"""Trait scores around a centre, in px. Colours and words are the templates' business."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from palign_fit.reporting.axis import Tick


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
