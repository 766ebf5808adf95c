"""An evaluation as tables, what the model says among them: on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from palign_fit.evaluation.conditions import PALIGN, PLAIN
from palign_fit.evaluation.figures import MEASURE_TEXT, PUBLISHED
from vllm_palign.directions.traits import TRAITS

Rows = list[list[str]]
Cell = Callable[[dict[str, Any] | None], str]

_HEADER = ["condition", "mean [95 %]", "minus plain", "minus palign"]


def tables(report: dict[str, Any], digits: int) -> Iterator[tuple[str, Rows]]:
    """(title, rows with the header first) of every table of a report."""
    cell = partial(_cell, digits=digits)
    conditions, baselines = report["conditions"], report["baselines"]
    keys = [
        key
        for key in MEASURE_TEXT
        if any(key in figures["measures"] for figures in conditions.values())
    ]
    for key in keys:
        rows = [
            [
                name,
                cell(figures["measures"].get(key)),
                cell(figures["against_plain"].get(key), sign=True) if name != PLAIN else "",
                cell(figures["against_palign"].get(key), sign=True) if name != PALIGN else "",
            ]
            for name, figures in conditions.items()
        ]
        rows += [
            [f"({name})", cell(figures["measures"][key]), "", ""]
            for name, figures in baselines.items()
            if key in figures["measures"]
        ]
        yield f"{_words(key)}: {MEASURE_TEXT[key]}", [_HEADER, *rows]
    if "error" in keys:
        parts = [*conditions.items(), *((f"({name})", own) for name, own in baselines.items())]
        yield (
            "absolute error by trait",
            [
                ["condition", *TRAITS, "summed"],
                *([name, *_trait_cells(figures["measures"]["error"])] for name, figures in parts),
                *(
                    [f"(published: {name})", *["-"] * len(TRAITS), f"{error:.2f}"]
                    for name, error in PUBLISHED.items()
                ),
            ],
        )
    yield from speech_tables(report.get("speech") or {}, cell)
    if "rating" in keys:
        counts = ("asked", "rated", "asked_again", "unparsable", "failed")
        yield (
            "rating by trait of the question",
            [
                ["condition", *TRAITS, "all"],
                *(
                    [name, *_trait_cells(figures["measures"]["rating"])]
                    for name, figures in conditions.items()
                ),
            ],
        )
        yield (
            "ratings asked for",
            [
                ["condition", *map(_words, counts)],
                *(
                    [name, *(str(figures["ratings"][count]) for count in counts)]
                    for name, figures in conditions.items()
                ),
            ],
        )


def terminal(report: dict[str, Any]) -> RenderableType:
    """Everything a person wants to see first."""
    parts: list[RenderableType] = [Text(line) for line in summary(report)]
    for title, (header, *rows) in tables(report, digits=2):
        table = RichTable(
            title=Text(title),
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        # Text, not markup: a system prompt or a reader's name stands in some.
        table.add_column(Text(header[0]), no_wrap=True)
        for name in header[1:]:
            table.add_column(Text(name), justify="right")
        for row in rows:
            table.add_row(*map(Text, row))
        parts += [Text(), table]
    if report["baselines"]:
        parts.append(
            Text(
                "In brackets: what can be had without a model, from training answers; and what the paper "
                "reports of Llama-3-8B on PAPI's test set, which says something beside that set's figures only."
            )
        )
    parts += [Text(f"warning: {line}", style="bold yellow") for line in report["warnings"]]
    return Group(*parts)


def markdown(report: dict[str, Any]) -> str:
    """The whole report as one Markdown text."""
    parts = ["# Evaluation", "\n".join(f"- {line}" for line in summary(report))]
    parts += [f"**Warning:** {line}" for line in report["warnings"]]
    for title, rows in tables(report, digits=3):
        parts += [f"## {title}", _markdown_table(rows)]
    return "\n\n".join(parts) + "\n"


def summary(report: dict[str, Any]) -> list[str]:
    """Model, subjects and split, a line each."""
    subjects = report["subjects"]
    held = [subject["held_out_items"] for subject in subjects]
    train = [subject["train_items"] for subject in subjects]
    return [
        f"model {report['model']} ({report['backend']['kind']}), inventory "
        f"{report['inventory']['name']}",
        f"{len(subjects)} subjects ({report['settings']['subjects']}); {_range(train)} training "
        f"answers, {_range(held)} measured",
        _how(report),
        *(
            f"personas by {method}, fitted here: {folder}"
            for method, folder in report.get("fitted_in", {}).items()
        ),
    ]


def _how(report: dict[str, Any]) -> str:
    judge = report.get("judge")
    first = f"judge {judge['model']}" if judge else f"usual answers: {report['usual_answers']}"
    return f"{first}; strength {report['settings']['strength']:g}; {report['seconds']:.0f} s"


def _cell(estimate: dict[str, Any] | None, digits: int, *, sign: bool = False) -> str:
    """``0.31 [0.27,0.35]``, mean and 95 % interval; a dash where there is nothing."""
    if estimate is None or estimate["mean"] is None:
        return "-"
    text = f"{estimate['mean']:{'+' if sign else ''}.{digits}f}"
    if estimate["low"] is not None:
        text += f" [{estimate['low']:.{digits}f},{estimate['high']:.{digits}f}]"
    return text


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _words(key: str) -> str:
    return key.replace("_", " ")


def _trait_cells(measure: dict[str, Any]) -> list[str]:
    """Means by trait and over all."""
    means = [*(measure["traits"][trait]["mean"] for trait in TRAITS), measure["mean"]]
    return ["-" if mean is None else f"{mean:.2f}" for mean in means]


def _markdown_table(rows: Rows) -> str:
    header, *body = rows
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    # A system prompt stands in some cells.
    plain = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in plain)


def speech_tables(speech: dict[str, Any], cell: Cell) -> Iterator[tuple[str, Rows]]:
    """(title, rows with the header first) of every table about what the model says; ``cell`` writes an estimate."""
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
