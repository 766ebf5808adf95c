"""Turns of one run as tables: medians, quartiles, ratios of neighbouring turns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from load import Outcome

Turns = dict[str, list[Outcome]]
"""Variant -> its turn in each round."""

BASE = "stock vLLM"


def ratios(turns: Mapping[str, Sequence[Outcome]], variant: str, base: str) -> list[float]:
    """Tokens/s of ``variant`` over ``base``, round by round."""
    return [
        one.tokens_per_second / other.tokens_per_second
        for one, other in zip(turns[variant], turns[base], strict=True)
    ]


def price_table(turns: Turns, block_mib: float) -> str:
    """``block_mib``: MiB of one KV block."""
    lines = [
        "| | tokens/s | of stock (quartiles) | of idle (quartiles) | TTFT ms (p99) | TPOT ms (p99) "
        "| PSS MiB | KV MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, outcomes in turns.items():
        of_idle = spread(ratios(turns, name, "idle")) if "idle" in turns else ""
        lines.append(
            f"| {name} | {statistics.median(o.tokens_per_second for o in outcomes):.1f} "
            f"| {spread(ratios(turns, name, BASE))} | {of_idle} "
            f"| {milliseconds([value for o in outcomes for value in o.ttfts])} "
            f"| {milliseconds([value for o in outcomes for value in o.tpots])} "
            f"| {max(o.memory for o in outcomes):.0f} "
            f"| {max(o.kv_blocks for o in outcomes) * block_mib:.0f} |"
        )
    return "\n".join(lines)


def rivals_table(turns: Turns) -> str:
    """Overhead beside LoRA, and TTFT beside the personality prompt, round by round."""
    personas = turns["16 personas"]
    lines = [
        f"{name}: {spread([1 / ratio - 1 for ratio in ratios(turns, name, BASE)])} of stock's time more"
        for name in ("16 personas", "1 adapter", "16 adapters")
    ]
    lines += [
        f"TTFT of {name} over 16 personas: "
        + spread(
            [_ttft(one) / _ttft(other) for one, other in zip(turns[name], personas, strict=True)]
        )
        for name in ("prompt, first time", "prompt, again")
    ]
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """``median (first quartile to third)``, or the one value there is."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * np.median(seconds):.1f} ({1000 * np.quantile(seconds, 0.99):.1f})"


def _ttft(outcome: Outcome) -> float:
    return statistics.median(outcome.ttfts)
