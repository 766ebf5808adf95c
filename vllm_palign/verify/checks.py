"""What engines were seen to do, judged. Pure functions of numbers; no vLLM here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vllm_palign.verify.engine import MIXED, Observed

Verdict = Literal["ok", "FAILED", "not checked"]

_NOISE = 4.0
"""Times the difference of two equal runs that is still called equal."""
_SHARE = 0.02
"""Share of a persona's effect that is still called equal: another kernel's rounding, nobody's offsets."""


@dataclass(frozen=True)
class Check:
    name: str
    verdict: Verdict
    detail: str


def judge(observed: Observed) -> list[Check]:
    """The checks of one engine alone."""
    scores = {name: np.array(rows) for name, rows in observed.scores.items()}
    noise = _distance(scores["plain"], scores["plain again"])
    effects = {who: _distance(scores[who], scores["plain"]) for who in ("alice", "bob", "carol")}
    apart = _distance(scores["alice"], scores["bob"])
    smallest = min(*effects.values(), apart)
    same = _NOISE * noise + _SHARE * smallest
    armed = observed.armed
    alone = [
        scores["plain" if who is None or isinstance(who, dict) else who][row]
        for row, who in enumerate(MIXED)
    ]
    return [
        Check(
            "layers armed, self-test passed",
            "ok",
            f"{armed['layers']} layers x {armed['heads']} heads, {armed['slots']} slots, "
            f"{armed['mib']:g} MiB; each layer's offsets reach the hidden states",
        ),
        _check(
            "steered differs from plain, persona from persona",
            smallest > max(10 * noise, 1e-4),
            f"mean |Δ log-prob| {', '.join(f'{who} {effect:.3g}' for who, effect in effects.items())}, "
            f"alice from bob {apart:.3g}; two equal plain runs {noise:.2g}",
        ),
        _equal("strength 0 equals plain", scores["strength 0"], scores["plain"], same),
        _equal(
            "two personas, a plain request and strength 0 in one batch, each as alone",
            scores["mixed"],
            np.array(alone),
            same,
        ),
        _equal(
            "the same after other personas have used every slot",
            scores["mixed again"],
            scores["mixed"],
            same,
        ),
        _equal(
            "a persona that took a used slot, as alone",
            scores["others"][0],
            scores["carol"][0],
            same,
        ),
        _kv(observed, same),
        _answers(observed, same),
        _replays(observed),
    ]


def compare(observed: Observed, eager: Observed) -> Check:
    """Steered answers from compiled code and graphs against eager mode's, by the measure of plain ones."""
    floor, worst, effect = 0.0, 0.0, np.inf
    for name in observed.scores:
        distance = _distance(observed.scores[name], eager.scores[name])
        if name.startswith("plain"):
            floor = max(floor, distance)
        else:
            worst = max(worst, distance)
    for who in ("alice", "bob", "carol"):
        effect = min(effect, _distance(eager.scores[who], eager.scores["plain"]))
    return _check(
        "steered answers equal eager mode's",
        worst <= _NOISE * floor + _SHARE * effect and effect > 4 * worst,
        f"mean |Δ log-prob| {worst:.2g} steered, {floor:.2g} plain; personas' effect {effect:.3g}",
    )


def _kv(observed: Observed, same: float) -> Check:
    name = "KV blocks are shared under the same persona only"
    found = observed.cached
    if not found:
        return Check(name, "not checked", "no prefix caching, or too short sequences")
    fresh = [found[who] for who in ("alice first", "plain first", "bob first")]
    shared = [found[who] for who in ("alice again", "plain again", "strength 0")]
    kv = {who: np.array(row) for who, row in observed.kv_scores.items()}
    worst = max(
        _distance(kv["alice again"], kv["alice first"]),
        _distance(kv["plain again"], kv["plain first"]),
        _distance(kv["strength 0"], kv["plain first"]),
    )
    # A cached prompt is computed in a step of another size, whose kernels may round otherwise.
    wrong = min(_distance(kv["alice first"], kv[f"{who} first"]) for who in ("plain", "bob"))
    return _check(
        name,
        not any(fresh) and all(shared) and worst <= max(same, 0.25 * wrong),
        f"cached prompt tokens: first alice, plain, bob {fresh}; again alice, plain, strength 0 {shared}; "
        f"answers from cached blocks differ by {worst:.2g}, personas by {wrong:.3g}",
    )


def _answers(observed: Observed, same: float) -> Check:
    name = "scope answers: the plain prompt's KV blocks, and answers of its own"
    found = observed.cached
    if not found:
        return Check(name, "not checked", "no prefix caching, or too short sequences")
    cached = [found[who] for who in ("plain again", "answers first", "answers again")]
    kv = {who: np.array(row) for who, row in observed.kv_scores.items()}
    again = _distance(kv["answers again"], kv["answers first"])
    moved = _distance(kv["answers first"], kv["plain first"])
    return _check(
        name,
        len(set(cached)) == 1
        and cached[0] > 0
        and again <= max(same, 0.25 * moved)
        and moved > same,
        f"cached prompt tokens: plain again, answers, answers again {cached}; answers differ by {again:.2g} "
        f"among themselves, from plain by {moved:.3g}",
    )


def _replays(observed: Observed) -> Check:
    name = "CUDA graphs were replayed with other personas in their slots"
    mode = observed.environment["cudagraph_mode"]
    if observed.environment["cuda"] is None:
        return Check(name, "not checked", "no CUDA graphs on this machine")
    if mode == "NONE":
        return Check(name, "not checked", "this engine runs without CUDA graphs")
    counts = {name: observed.replays[name] for name in ("mixed", "others", "mixed again")}
    return _check(
        name,
        all(counts.values()),
        f"mode {mode}; replays: {', '.join(f'{name} {count}' for name, count in counts.items())}",
    )


def _equal(name: str, got: np.ndarray, wanted: np.ndarray, same: float) -> Check:
    rows = zip(np.atleast_2d(got), np.atleast_2d(wanted), strict=True)
    worst = max(_distance(one, other) for one, other in rows)
    return _check(name, worst <= same, f"mean |Δ log-prob| {worst:.2g}, allowed {same:.2g}")


def _check(name: str, passed: bool, detail: str) -> Check:
    return Check(name, "ok" if passed else "FAILED", detail)


def _distance(one: object, other: object) -> float:
    """Mean absolute difference; infinite where a number is not finite."""
    difference = np.abs(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64))
    return float(difference.mean()) if np.isfinite(difference).all() else float("inf")
