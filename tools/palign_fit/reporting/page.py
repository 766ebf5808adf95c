"""The page: everything gathered, as one HTML text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

from palign_fit.errors import InputError
from palign_fit.evaluation.tables import tables
from palign_fit.reporting.charts import AlphaChart
from palign_fit.reporting.evaluated import Evaluation
from palign_fit.reporting.layers import HeadMap, ScoreChart
from palign_fit.reporting.profile import Profile
from palign_fit.reporting.samples import Curve, Sample, Spoken
from palign_fit.reporting.sources import Entry, Sources

MAX_BYTES = 32 * 1024 * 1024
_OPEN = 3
"""So many personas are shown unfolded."""


@dataclass(frozen=True)
class Row:
    """One line of the overview. ``place`` is the number in anchors; ``profile`` None if not evaluated."""

    place: int
    entry: Entry
    profile: Profile | None
    detailed: bool


@dataclass(frozen=True)
class Detail:
    """Everything shown of one persona."""

    row: Row
    head_map: HeadMap | None
    scores: ScoreChart | None
    alpha: AlphaChart | None
    curve: Curve | None
    samples: tuple[Sample, ...]


def overview(sources: Sources, evaluation: Evaluation | None) -> list[Row]:
    """A row a persona. Raises InputError where the evaluation is of nobody here."""
    places = evaluation.places() if evaluation else {}
    rows = [
        Row(
            place,
            entry,
            Profile.of(evaluation, places[entry.id], entry)
            if evaluation and entry.id in places
            else None,
            place < sources.detailed,
        )
        for place, entry in enumerate(sources.entries)
    ]
    if evaluation and not any(row.profile for row in rows):
        raise InputError(
            f"--evaluation: none of its {len(places)} subjects (such as "
            f"{evaluation.subjects[0].id[:60]!r}) has a persona file here, named after it"
        )
    return rows


def detail(row: Row, spoken: Spoken | None) -> Detail:
    entry, record = row.entry, row.entry.record
    curve = spoken.curve if spoken else None
    return Detail(
        row=row,
        head_map=HeadMap.of(entry.heads, entry.num_layers, entry.num_heads),
        scores=ScoreChart.of(entry.heads, entry.num_layers),
        alpha=AlphaChart.of(
            curve.points if curve else record.trials,
            entry.alpha,
            curve.perplexity_plain if curve else record.perplexity_plain,
            record.max_perplexity_ratio,
        ),
        curve=curve,
        samples=spoken.samples if spoken else (),
    )


def render(
    folder: str,
    sources: Sources,
    rows: Sequence[Row],
    *,
    evaluation: Evaluation | None = None,
    spoken: Mapping[str, Spoken] | None = None,
    model: str | None = None,
    left_out: Sequence[str] = (),
) -> str:
    """The same input gives the same text. Raises InputError without jinja2, or where it grows too large."""
    environment = _environment()
    details = [detail(row, (spoken or {}).get(row.entry.id)) for row in rows if row.detailed]
    figures = list(tables(evaluation.as_tables(), digits=2)) if evaluation else []
    css, js = (_own(environment, name) for name in ("page.css", "page.js"))
    page = environment.get_template("page.html.j2").render(
        folder=folder,
        css=css,
        js=js,
        css_hash=_hash(css),
        js_hash=_hash(js),
        rows=rows,
        details=details,
        unfolded=len(details) <= _OPEN,
        models=sorted({row.entry.base_model for row in rows}),
        weak=sum(row.entry.record.weak for row in rows),
        alignment=_median(row.entry.record.alignment for row in rows),
        drift=_median(row.entry.record.perplexity_ratio for row in rows),
        evaluation=evaluation,
        tables=[(title, lines) for title, lines in figures if not _first(title)],
        first_tables=[(title, lines) for title, lines in figures if _first(title)],
        asked=model,
        unreadable=sources.unreadable,
        left_out=left_out,
    )
    if len(page.encode()) > MAX_BYTES:
        raise InputError(
            f"the page would be larger than {MAX_BYTES // 2**20} MiB; report on fewer personas"
        )
    return str(page)


@cache
def _environment() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise InputError(
            "report needs jinja2, which is not installed; pip install 'vllm-palign[report]'"
        ) from error
    environment = Environment(
        loader=PackageLoader("palign_fit.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"fig": fig, "fixed": fixed, "prose": prose}
    return environment


def _own(environment: Any, name: str) -> Any:
    """Our own style or script, put in as it is."""
    from markupsafe import Markup

    source, _, _ = environment.loader.get_source(environment, name)
    return Markup(source)


def _hash(source: str) -> str:
    """What the page's content security policy calls the only style and the only script allowed."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


def _first(title: str) -> bool:
    """Whether a table of the evaluation is shown unfolded: how well, and how wrong."""
    return title.startswith(("alignment:", "absolute error by trait"))


def _median(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def fig(value: float | None) -> str:
    """Three significant digits; a dash for nothing."""
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def fixed(value: float | None, digits: int = 2) -> str:
    """So many digits after the point, for columns that line up."""
    if value is None:
        return "–"
    return fig(value) if abs(value) >= 1e5 else f"{value:.{digits}f}".replace("-", "−")


def prose(text: str) -> str:
    """A model's answer: printable characters and line ends."""
    shown = "".join(one if one.isprintable() or one == "\n" else " " for one in text[:4000])
    return shown.strip() or "(nothing)"
