"""The part of a report about what the model says, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vllm_palign.directions.traits import TRAITS

Rows = list[list[str]]
Cell = Callable[[dict[str, Any] | None], str]


def tables(speech: dict[str, Any], cell: Cell) -> Iterator[tuple[str, Rows]]:
    """(title, rows with the header first) of every table; ``cell`` writes an estimate."""
    if answers := speech.get("answers"):
        yield from _answers(answers, cell)


def _answers(answers: dict[str, Any], cell: Cell) -> Iterator[tuple[str, Rows]]:
    asked = f"{answers['questions']['asked']} {answers['questions']['part']} questions"
    for system in dict.fromkeys(case["system"] for case in answers["cases"]):
        own = [case for case in answers["cases"] if case["system"] == system]
        under = f"system prompt {system!r}" if system else "no system prompt"
        for reader in answers["readers"]:
            rows = [
                [
                    named(case),
                    cell(case["readers"][reader]["r"]),
                    *(short(case["readers"][reader]["traits"][trait]) for trait in TRAITS),
                    cell(case["readers"][reader]["identification"]),
                    cell(case["readers"][reader]["rank"]),
                    cell((case["readers"][reader]["against_prompt"] or {}).get("r")),
                ]
                for case in own
                if case["condition"] != "plain"
            ]
            if rows:
                header = ["condition", "r", *TRAITS, "identification", "rank", "r - prompt's"]
                yield f"answers to {asked}, {under}, read by {reader}", [header, *rows]
        rows = [
            [named(case), *(cell(case["voice"][key]) for key in ("machine", "repeated", "words"))]
            for case in own
        ]
        yield (
            f"how it speaks, {under}",
            [["condition", "machine's voice", "repeated 4-grams", "words"], *rows],
        )
    if answers["dose_response"]:
        rows = [
            [one["condition"], one["system"] or "-", one["reader"], cell(one["rho"])]
            for one in answers["dose_response"]
        ]
        yield (
            "does more strength say more (Spearman)",
            [["condition", "system prompt", "reader", "rho"], *rows],
        )


def named(case: dict[str, Any]) -> str:
    """``palign 1.5`` of a case."""
    strength = case["strength"]
    return case["condition"] if strength is None else f"{case['condition']} {strength:g}"


def short(estimate: dict[str, Any]) -> str:
    return "-" if estimate["mean"] is None else f"{estimate['mean']:.2f}"
