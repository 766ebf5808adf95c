"""Head map and scores: both over the layers, on the same places, in px. Colours and words are the templates' business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palign_fit.reporting.charts import Axis, Tick
from palign_fit.reporting.sources import Head

LEVELS = 6
"""Shades of the head map."""

MAX_SIDE = 512
"""Most layers or heads that are drawn."""

_LEFT, _RIGHT, _LABELS = 46, 12, 36


@dataclass(frozen=True)
class Cell:
    x: float
    y: float
    level: int
    head: Head


@dataclass(frozen=True)
class HeadMap:
    """Layers from left to right, heads from top to bottom; ``edges`` of the shades, LEVELS + 1."""

    width: float
    height: float
    left: float
    side: float
    bottom: float
    cells: tuple[Cell, ...]
    edges: tuple[float, ...]
    columns: tuple[Tick, ...]
    rows: tuple[Tick, ...]
    grid: str
    strongest: Head

    @classmethod
    def of(cls, heads: Sequence[Head], layers: int, per_layer: int) -> HeadMap | None:
        """None where the model has more layers or heads than can be drawn."""
        if max(layers, per_layer) > MAX_SIDE:
            return None
        side = _side(layers)
        top, right, bottom = 4.0, _LEFT + layers * side, 4 + per_layer * side
        most = max(one.norm for one in heads)
        lines = [f"M{round(_LEFT + n * side, 1)} {top}V{bottom}" for n in range(layers + 1)]
        lines += [f"M{_LEFT} {round(top + n * side, 1)}H{right}" for n in range(per_layer + 1)]
        return cls(
            width=right + _RIGHT,
            height=bottom + _LABELS,
            left=_LEFT,
            side=side,
            bottom=bottom,
            cells=tuple(
                Cell(
                    round(_LEFT + one.layer * side, 1),
                    round(top + one.head * side, 1),
                    min(LEVELS - 1, int(LEVELS * one.norm / most)) if most > 0 else 0,
                    one,
                )
                for one in heads
            ),
            edges=tuple(most * n / LEVELS for n in range(LEVELS + 1)),
            columns=_layer_ticks(layers),
            rows=tuple(
                Tick(round(top + (n + 0.5) * side, 1), str(n))
                for n in range(0, per_layer, _every(per_layer, side, 13))
            ),
            grid="".join(lines),
            strongest=max(heads, key=lambda one: one.norm),
        )


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    head: Head


@dataclass(frozen=True)
class ScoreChart:
    """Recorded score of every steered head, on the head map's layers; ``means`` as an SVG path."""

    width: float
    height: float
    left: float
    right: float
    bottom: float
    dots: tuple[Dot, ...]
    means: str
    columns: tuple[Tick, ...]
    rows: tuple[Tick, ...]
    best: Head

    @classmethod
    def of(cls, heads: Sequence[Head], layers: int) -> ScoreChart | None:
        """None where no score is recorded."""
        scored = [(one, one.score) for one in heads if one.score is not None]
        if not scored or layers > MAX_SIDE:
            return None
        side, bottom = _side(layers), 134.0
        axis = Axis.over((score for _, score in scored), bottom - 4, 10, most=4)
        marks = []
        for layer in sorted({one.layer for one, _ in scored}):
            mean = float(np.mean([score for one, score in scored if one.layer == layer]))
            marks.append(f"M{round(_LEFT + layer * side, 1)} {axis.place(mean)}h{round(side, 1)}")
        return cls(
            width=_LEFT + layers * side + _RIGHT,
            height=bottom + _LABELS,
            left=_LEFT,
            right=_LEFT + layers * side,
            bottom=bottom,
            dots=tuple(
                Dot(round(_LEFT + (one.layer + 0.5) * side, 1), axis.place(score), one)
                for one, score in scored
            ),
            means="".join(marks),
            columns=_layer_ticks(layers),
            rows=tuple(axis.ticks),
            best=max(scored, key=lambda pair: pair[1])[0],
        )


def _side(layers: int) -> float:
    """px of a cell: 30 layers read well and 80 fit a page."""
    return max(2.0, min(15.0, float(round(600 / layers, 1))))


def _every(count: int, side: float, room: float) -> int:
    """Label every so many of ``count`` rows ``side`` px apart, ``room`` px a label."""
    return next(
        n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) if n * side >= room or n >= count
    )


def _layer_ticks(layers: int) -> tuple[Tick, ...]:
    side = _side(layers)
    return tuple(
        Tick(round(_LEFT + (n + 0.5) * side, 1), str(n))
        for n in range(0, layers, _every(layers, side, 24))
    )
