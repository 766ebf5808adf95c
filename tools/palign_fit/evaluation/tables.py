"""An evaluation as tables: on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from palign_fit.evaluation.conditions import PALIGN, PLAIN
from palign_fit.evaluation.figures import MEASURE_TEXT, PUBLISHED
from palign_fit.evaluation.speech.tables import tables as speech_tables
from vllm_palign.directions.traits import TRAITS

Rows = list[list[str]]

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
            title=title,
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column(header[0], no_wrap=True)
        for name in header[1:]:
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(*row)
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
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
