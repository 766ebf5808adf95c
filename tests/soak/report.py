"""What is printed: a line a minute, and the tables at the end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tests.soak.servers import Sample
from tests.soak.tally import LEFT, LOST, OUTCOMES, REFUSED, RIGHT, Tally

MIB = 1 << 20
MOST_GROWTH = 48 * MIB
FEWEST_SAMPLES = 12

HAPPENS = {
    RIGHT: [
        "chat", "chat, streamed", "completions", "completions, streamed", "responses", "responses, streamed",
        "PUT, new", "PUT, replacing", "PUT, the same again", "DELETE", "GET one", "GET all", "GET models",
        "a new key", "a revoked key", "after a restart",
    ],
    REFUSED: [
        "asks for what cannot be applied", "PUT over another without replace", "PUT of what is no persona",
        "attempt on another tenant or the server",
    ],
    LEFT: ["leaves while streaming", "leaves while waiting", "PUT that breaks off"],
}  # fmt: skip
SHOWN = [
    "effect: nobody", "effect: one", "effect: blend", "asked by: field", "asked by: metadata",
    "asked by: model", "asked by: two places", "n > 1", "scope: answers", "scope: all",
]  # fmt: skip
"""What a run must have seen to have shown anything."""


def missing(tally: Tally, samples: Sequence[Sample]) -> list[str]:
    """What has not happened yet; the memory of some life long enough among it."""
    found = [
        f"{kind}: {outcome}"
        for outcome, kinds in HAPPENS.items()
        for kind in kinds
        if not tally.outcomes[kind, outcome]
    ]
    found += [one for one in SHOWN if not tally.features[one]]
    return found if growths(samples) else [*found, "memory"]


def progress(seconds: float, tally: Tally, samples: Sequence[Sample]) -> str:
    memory = f"{samples[-1].memory / MIB:.0f} MiB" if samples else "-"
    return (
        f"{seconds / 60:5.1f} min  {tally.total} requests: {tally.of(RIGHT)} right, "
        f"{tally.of(REFUSED)} refused, {tally.of(LEFT)} left, {tally.of(LOST)} lost to a kill, "
        f"{len(tally.wrong)} wrong; {memory}"
    )


def growths(samples: Sequence[Sample]) -> list[dict[str, float]]:
    """Of each life that was long enough: median memory of its second and of its last third. The first
    third warms up: caches fill, KV blocks are touched, the allocators of three processes settle."""
    found = []
    for life in sorted({sample.life for sample in samples}):
        own = [sample for sample in samples if sample.life == life]
        third = len(own) // 3
        if len(own) < FEWEST_SAMPLES:
            continue
        second = statistics.median(sample.memory for sample in own[third : 2 * third])
        last = statistics.median(sample.memory for sample in own[2 * third :])
        found.append(
            {
                "life": life,
                "seconds": own[-1].seconds,
                "requests": own[-1].requests - own[third].requests,
                "warm_mib": second / MIB,
                "end_mib": last / MIB,
                "growth_mib": (last - second) / MIB,
            }
        )
    return found


def result(
    tally: Tally, samples: Sequence[Sample], kills: Sequence[str], seconds: float
) -> dict[str, Any]:
    memory = growths(samples)
    leaks = [life for life in memory if life["growth_mib"] * MIB > MOST_GROWTH]
    return {
        "seconds": seconds,
        "requests": tally.total,
        "kinds": {
            kind: {outcome: tally.outcomes[kind, outcome] for outcome in OUTCOMES}
            for kind in tally.kinds()
        },
        "features": dict(sorted(tally.features.items())),
        "tokens_checked": tally.tokens,
        "worst_logprob_difference": tally.worst,
        "kills": list(kills),
        "missing": missing(tally, samples),
        "memory": memory,
        "samples": [[s.life, round(s.seconds), s.requests, round(s.memory / MIB)] for s in samples],
        "leaks": leaks,
        "wrong": tally.wrong,
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['requests']} requests in {result['seconds'] / 60:.1f} minutes, "
        f"{result['tokens_checked']} tokens checked, largest |log-probability difference| "
        f"{result['worst_logprob_difference']:.1e}, killed: {', '.join(result['kills']) or 'nothing'}",
        "",
        "| | " + " | ".join(OUTCOMES) + " |",
        "|---" + "|---:" * len(OUTCOMES) + "|",
    ]
    for kind, counts in result["kinds"].items():
        lines.append(f"| {kind} | " + " | ".join(str(counts[o] or "") for o in OUTCOMES) + " |")
    totals = [sum(counts[o] for counts in result["kinds"].values()) for o in OUTCOMES]
    lines += [f"| all | {' | '.join(map(str, totals))} |", "", "| right answers | |", "|---|---:|"]
    lines += [f"| {name} | {count} |" for name, count in result["features"].items()]
    lines += [
        "",
        "| server's life | seconds | requests | MiB warm | MiB at the end | growth |",
        "|---" * 6 + "|",
    ]
    lines += [
        f"| {life['life']:.0f} | {life['seconds']:.0f} | {life['requests']:.0f} | {life['warm_mib']:.0f} | "
        f"{life['end_mib']:.0f} | {life['growth_mib']:+.1f} |"
        for life in result["memory"]
    ]
    return "\n".join(lines)
