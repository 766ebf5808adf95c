"""Drawings as SVG text: the radar of a person, the head map of a persona. Colours are the style sheet's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

import numpy as np

from vllm_palign.persona import Persona
from vllm_palign.play.words import TRAITS, number

MOST_CELLS = 50_000
"""Heads of a model whose map is still drawn."""

_RADIUS = 100.0
_CELL = 10


def radar(
    person: Mapping[str, float | None], usual: Mapping[str, float | None], low: float, high: float
) -> str:
    """Values by trait letter, ``low`` in the centre and ``high`` on the rim. What is None has no corner."""

    def at(place: int, value: float) -> tuple[float, float]:
        share = (min(max(value, low), high) - low) / (high - low)
        angle = 2 * math.pi * place / len(TRAITS)
        return round(math.sin(angle) * _RADIUS * share, 1), round(
            -math.cos(angle) * _RADIUS * share, 1
        )

    def corners(values: Mapping[str, float | None]) -> list[tuple[float, float]]:
        known = [(place, values.get(trait)) for place, trait in enumerate(TRAITS)]
        return [at(place, value) for place, value in known if value is not None]

    def outline(points: list[tuple[float, float]], style: str) -> str:
        text = " ".join(f"{x},{y}" for x, y in points)
        shape = f'<polygon class="{style}" points="{text}"/>' if len(points) > 2 else ""
        return shape + "".join(
            f'<circle class="{style}" cx="{x}" cy="{y}" r="3"/>' for x, y in points
        )

    lines = []
    for ring in (1, 2, 3, 4):
        points = [at(place, low + (high - low) * ring / 4) for place in range(len(TRAITS))]
        text = " ".join(f"{x},{y}" for x, y in points)
        lines.append(f'<polygon class="grid" points="{text}"/>')
    for place, label in enumerate(TRAITS.values()):
        (x, y), (label_x, label_y) = at(place, high), at(place, high)
        anchor = "middle" if abs(x) < 1 else "start" if x > 0 else "end"
        label_x, label_y = label_x * 1.08, label_y * 1.08 + (-2 if y < -50 else 8 if y > 50 else 4)
        lines.append(f'<line class="grid" x1="0" y1="0" x2="{x}" y2="{y}"/>')
        lines.append(
            f'<text x="{label_x:.1f}" y="{label_y:.1f}" text-anchor="{anchor}">{label}</text>'
        )
    said = ", ".join(
        f"{label} {number(value)}"
        for trait, label in TRAITS.items()
        if (value := person.get(trait)) is not None
    )
    return (
        '<svg class="radar" viewBox="-205 -125 410 245" role="img" '
        f'aria-label="Big Five from {number(low)} to {number(high)}: {said or "nothing answered yet"}">'
        + "".join(lines)
        + outline(corners(usual), "usual")
        + outline(corners(person), "own")
        + "</svg>"
        '<p class="legend"><span class="key own"></span>this person '
        '<span class="key usual"></span>what is usual</p>'
    )


def head_map(persona: Persona) -> str:
    """Layers to the right, query heads downward, stronger where the norm of alpha x offset is larger."""
    if persona.num_layers * persona.num_heads > MOST_CELLS:
        return "<p>This model has too many heads for a map.</p>"
    norms = abs(persona.alpha) * np.linalg.norm(persona.offsets.astype(np.float64), axis=1)
    most = float(norms.max()) or 1.0
    width, height = persona.num_layers * _CELL, persona.num_heads * _CELL
    cells = "".join(
        f'<rect class="cell" x="{layer * _CELL + 0.5}" y="{head * _CELL + 0.5}" width="{_CELL - 1}" '
        f'height="{_CELL - 1}" rx="1.5" fill-opacity="{0.15 + 0.85 * norm / most:.2f}">'
        f"<title>layer {layer}, head {head}: {number(norm)}</title></rect>"
        for layer, head, norm in zip(persona.layers, persona.heads, norms, strict=True)
    )
    top = int(norms.argmax())
    label = (
        f"{len(persona.layers)} of {persona.num_layers * persona.num_heads} heads steered, most in layer "
        f"{persona.layers[top]}, head {persona.heads[top]}"
    )
    step = max(1, -(-persona.num_layers // 10))
    ticks = "".join(
        f'<text x="{layer * _CELL + _CELL / 2}" y="{height + 9}" text-anchor="middle">{layer}</text>'
        for layer in range(0, persona.num_layers, step)
    )
    return (
        f'<svg class="heads" viewBox="-1 -1 {width + 2} {height + 22}" role="img" aria-label="{escape(label)}">'
        f'<rect class="ground" x="0" y="0" width="{width}" height="{height}" rx="2"/>{cells}{ticks}'
        f'<text x="{width / 2}" y="{height + 19}" text-anchor="middle">decoder layer</text></svg>'
        f'<p class="legend">{escape(label)}. Rows are query heads; full colour adds {most:.2g} at strength 1.</p>'
    )
