"""Recognition against damage as one SVG: a line each for what can make a model somebody."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from typing import Any

from palign_fit.reporting.charts import Axis

COLOURS = {
    "palign": "#0b6e4f",
    "palign+prompt": "#7b2d8b",
    "personality-prompt": "#c0392b",
    "few-shot": "#b9770e",
    "pas-reference": "#5d6d7e",
}
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560.0, 330.0, 60.0, 400.0, 44.0, 276.0
_LEAST = 1e-4
"""KL that is drawn as nothing."""


@dataclass(frozen=True)
class Spot:
    """One case: its KL in nats, its r and the ends of its interval, and the strength beside it."""

    kl: float
    r: float
    low: float
    high: float
    label: str


def recognition_against_damage(speech: dict[str, Any]) -> str | None:
    """The report's ``speech`` drawn, a panel for each system prompt and reader; None where it does not hold both
    answers and damage."""
    answers, damage = speech.get("answers"), speech.get("damage")
    if not answers or not damage:
        return None
    costs = {(one["condition"], one["strength"]): one["kl"]["all"]["mean"] for one in damage}
    systems = list(dict.fromkeys(case["system"] for case in answers["cases"]))
    panels = [
        (_title(system, reader), _lines(answers["cases"], costs, system, reader))
        for system, reader in product(systems, answers["readers"])
    ]
    drawn = [(title, lines) for title, lines in panels if lines]
    if not drawn:
        return None
    height = _HEIGHT * len(drawn)
    body = "".join(
        f'<g transform="translate(0 {place * _HEIGHT})">{"".join(_panel(title, lines))}</g>'
        for place, (title, lines) in enumerate(drawn)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH:g}" height="{height:g}" '
        f'viewBox="0 0 {_WIDTH:g} {height:g}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
    )


def _title(system: str | None, reader: str) -> str:
    under = (
        f"system prompt “{system[:40]}{'…' if len(system) > 40 else ''}”"
        if system
        else "no system prompt"
    )
    return f"{under}, read by {reader[:40]}"


def _lines(
    cases: Sequence[dict[str, Any]],
    costs: dict[tuple[str, float | None], float | None],
    system: str | None,
    reader: str,
) -> dict[str, list[Spot]]:
    """Condition -> its cases that have both figures, in order of strength."""
    lines: dict[str, list[Spot]] = {}
    for case in sorted(cases, key=lambda case: case["strength"] or 0.0):
        name, strength = case["condition"], case["strength"]
        found, kl = case["readers"][reader]["r"], costs.get((name, strength))
        if case["system"] != system or name == "plain" or kl is None or found["mean"] is None:
            continue
        low, high = (
            found[end] if found[end] is not None else found["mean"] for end in ("low", "high")
        )
        label = "" if strength is None else f"{strength:g}"
        spot = Spot(max(kl, _LEAST), found["mean"], low, high, label)
        lines.setdefault(name, []).append(spot)
    return lines


def _panel(title: str, lines: dict[str, list[Spot]]) -> Iterator[str]:
    spots = [spot for line in lines.values() for spot in line]
    logs = [math.log10(spot.kl) for spot in spots]
    across = Axis(
        math.floor(min(logs)),
        max(math.ceil(max(logs)), math.floor(min(logs)) + 1),
        1,
        _LEFT,
        _RIGHT,
    )
    ends = [end for spot in spots for end in (spot.low, spot.high)]
    up = Axis.over([0.0, 1.0, *ends], _BOTTOM, _TOP)
    yield f'<text x="{_LEFT}" y="22" font-size="13" font-weight="bold">{escape(title)}</text>'
    for tick in up.ticks:
        yield (
            f'<line x1="{_LEFT}" x2="{_RIGHT}" y1="{tick.place}" y2="{tick.place}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{tick.place + 4}" text-anchor="end">{tick.label}</text>'
        )
    for power in range(int(across.low), int(across.high) + 1):
        x = across.place(power)
        yield (
            f'<line x1="{x}" x2="{x}" y1="{_TOP}" y2="{_BOTTOM}" stroke="#eee"/>'
            f'<text x="{x}" y="{_BOTTOM + 16}" text-anchor="middle">{10.0**power:g}</text>'
        )
    middle = (_LEFT + _RIGHT) / 2
    yield (
        f'<text x="{middle}" y="{_BOTTOM + 34}" text-anchor="middle">'
        "damage: KL from plain in chats, nats a token</text>"
    )
    yield (
        f'<text x="16" y="{(_TOP + _BOTTOM) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {(_TOP + _BOTTOM) / 2})">recognition: r, mean of traits</text>'
    )
    for place, (name, line) in enumerate(lines.items()):
        colour = COLOURS.get(name, "#333")
        points = [(across.place(math.log10(spot.kl)), spot) for spot in line]
        path = " ".join(f"{x},{up.place(spot.r)}" for x, spot in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for x, spot in points:
            yield (
                f'<line x1="{x}" x2="{x}" y1="{up.place(spot.low)}" y2="{up.place(spot.high)}" '
                f'stroke="{colour}" opacity="0.35"/>'
                f'<circle cx="{x}" cy="{up.place(spot.r)}" r="4" fill="{colour}"/>'
                f'<text x="{x + 6}" y="{up.place(spot.r) - 6}" fill="{colour}">{escape(spot.label)}</text>'
            )
        y = _TOP + 18 * place
        yield (
            f'<circle cx="{_RIGHT + 18}" cy="{y}" r="4" fill="{colour}"/>'
            f'<text x="{_RIGHT + 28}" y="{y + 4}">{escape(name)}</text>'
        )
