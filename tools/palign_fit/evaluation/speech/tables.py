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
    if damage := speech.get("damage"):
        yield from _damage(damage, cell)
    if equal := speech.get("at_equal_damage"):
        yield (
            "r at the personality prompt's damage",
            [
                ["condition", "system prompt", "reader", "KL", "r", "r - prompt's"],
                *(
                    [
                        one["condition"],
                        one["system"] or "-",
                        one["reader"],
                        f"{one['kl']:.3g} of {one['prompt_kl']:.3g}",
                        cell(one["r"]),
                        cell(one["r_minus_prompt"]),
                    ]
                    for one in equal
                ),
            ],
        )
    if fading := speech.get("fading"):
        yield from _fading(fading, cell)


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


def _damage(damage: list[dict[str, Any]], cell: Cell) -> Iterator[tuple[str, Rows]]:
    for name, title in (
        ("kl", "KL(plain || condition), nats a token of plain's answers to chats"),
        ("same_top", "share of these tokens that stay the likeliest"),
        ("right", "share of facts, sums and forms that are right"),
        ("still", "the same of those that plain has right"),
    ):
        kinds = list(damage[0][name])
        rows = [[named(one), *(cell(one[name][kind]) for kind in kinds)] for one in damage]
        yield title, [["condition", *kinds], *rows]


def _fading(fading: dict[str, Any], cell: Cell) -> Iterator[tuple[str, Rows]]:
    turns = [str(turn) for turn in fading["turns"]]
    for reader in dict.fromkeys(name for case in fading["cases"] for name in case["readers"]):
        rows = []
        for case in fading["cases"]:
            own = case["readers"][reader]
            rs = [short(one["r"]) for one in own["turns"]]
            rows.append([named(case), *rs, cell(own["r_last_to_first"])])
        header = ["condition", *turns, "last / first"]
        yield f"r by turn of a conversation, read by {reader}", [header, *rows]


def named(case: dict[str, Any]) -> str:
    """``palign 1.5`` of a case."""
    strength = case["strength"]
    return case["condition"] if strength is None else f"{case['condition']} {strength:g}"


def short(estimate: dict[str, Any]) -> str:
    return "-" if estimate["mean"] is None else f"{estimate['mean']:.2f}"
