"""What ``palign-fit inspect`` shows of a persona file and of a directions file, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from palign_fit.reporting.record import FitRecord, Point, number
from vllm_palign.directions import Directions
from vllm_palign.directions.file import header
from vllm_palign.directions.numbers import short
from vllm_palign.directions.people import FORMS
from vllm_palign.directions.traits import TRAITS, trait_name
from vllm_palign.persona import Persona

TOP_HEADS = 10
_MAX_TEXT = 200


def as_json(persona: Persona) -> dict[str, Any]:
    """Everything the file holds but the offsets themselves, whose norms stand in."""
    return {
        **persona.header,
        "digest": persona.digest,
        "heads": [
            {"layer": layer, "head": head, "norm": norm, "score": score}
            for layer, head, norm, score in head_rows(persona)
        ],
    }


def head_rows(persona: Persona) -> Iterator[tuple[int, int, float, float | None]]:
    """(layer, head, norm of alpha x offset in activation units, recorded score) of every head."""
    recorded = persona.fit.get("scores")
    scores = recorded if isinstance(recorded, list) else []
    scores = scores if len(scores) == len(persona.layers) else [None] * len(persona.layers)
    norms = np.linalg.norm(np.float32(persona.alpha) * persona.offsets, axis=1)
    for k, (layer, head) in enumerate(zip(persona.layers, persona.heads, strict=True)):
        number = isinstance(scores[k], (int, float)) and not isinstance(scores[k], bool)
        yield int(layer), int(head), short(norms[k]), scores[k] if number else None


def card(persona: Persona) -> RenderableType:
    """The card of one persona. What its file does not say is left out."""
    record = FitRecord.read(persona.fit)
    parts: list[RenderableType] = [_facts(persona, record)]
    if record.trials:
        parts += [Text(), _alphas(persona, record.trials)]
    parts += [Text(), _heads(persona, record.score_name)]
    for warning in record.warnings:
        parts += [Text(), Text(f"warning: {warning}", style="bold yellow")]
    return Group(*parts)


def _facts(persona: Persona, record: FitRecord) -> Table:
    table = Table.grid(padding=(0, 2))
    fit = persona.fit
    weak = " - WEAK" if record.weak else ""
    lines = {
        "persona": persona.name,
        "description": persona.description,
        "digest": persona.digest,
        "model": persona.base_model,
        "shape": f"{persona.num_layers} layers x {persona.num_heads} heads x {persona.head_dim}",
        "method": persona.method,
        "steers": f"{len(persona.layers)} heads in {len(np.unique(persona.layers))} layers",
        "alpha": f"{persona.alpha:g}"
        + (f" (from {record.alpha_from})" if record.alpha_from else ""),
        "at most": f"strength {persona.max_strength:g}" if persona.max_strength is not None else "",
        "answers": f"{record.answered} of {record.items} items of {record.inventory}"
        if record.answered is not None and record.inventory
        else "",
        "alignment": f"{record.alignment:.3g} held-out correlation with the "
        + ("values" if "sliders" in fit else "answers")
        + weak
        if record.alignment is not None
        else "",
        "rank": f"{record.rank:.3g} of people: their personas follow the answers as well"
        if record.rank is not None
        else "",
        **_slider_facts(fit),
        **_pair_facts(fit, weak),
        "perplexity": f"{record.perplexity:.3g} of chats (plain {_shown(record.perplexity_plain)})"
        if record.perplexity is not None
        else "",
        "made by": record.tool,
    }
    for name, value in lines.items():
        if value:
            table.add_row(Text(name, style="bold"), escape(plain(value)))
    return table


def _slider_facts(fit: Mapping[str, Any]) -> dict[str, str]:
    """What a persona made of trait values says of them."""
    facts = {}
    for key, name in (("sliders", "traits"), ("effects", "held out")):
        values = fit.get(key)
        if isinstance(values, dict):
            shown = [
                f"{trait} {known:+.3g}"
                for trait, value in list(values.items())[:5]
                if (known := number(value)) is not None
            ]
            unit = "standard deviations" if key == "sliders" else "nats a token, by trait"
            facts[name] = f"{', '.join(shown)} ({unit})"
    return facts


def _pair_facts(fit: Mapping[str, Any], weak: str) -> dict[str, str]:
    """What a persona made of preference pairs says of them."""
    pairs, held = fit.get("pairs"), fit.get("held_out")
    facts = {}
    if isinstance(pairs, dict):
        facts["pairs"] = f"{pairs.get('used')} of {pairs.get('given')} given"
    if isinstance(held, dict):
        facts["held out"] = (
            f"moves {_number(held.get('pairs'))} pairs by {_number(held.get('change'))} nats a token "
            f"towards chosen, a share of {_number(held.get('accuracy'))} the right way (chance 0.5){weak}"
        )
    return facts


def _alphas(persona: Persona, trials: Sequence[Point]) -> Table:
    table = Table(title="What each alpha did on held-out items", title_justify="left")
    for name in ("alpha", "effect (nats/token)", "alignment r", "perplexity"):
        table.add_column(name, justify="right")
    for trial in trials:
        chosen = trial.alpha == persona.alpha
        cells = [
            _shown(value)
            for value in (trial.alpha, trial.effect, trial.alignment, trial.perplexity)
        ]
        table.add_row(*cells, style="bold green" if chosen else None)
    return table


def _heads(persona: Persona, score_name: str) -> Table:
    rows = sorted(head_rows(persona), key=lambda row: -(row[3] if row[3] is not None else row[2]))
    title = f"Top {min(TOP_HEADS, len(rows))} of {len(rows)} heads"
    table = Table(title=title, title_justify="left")
    for name in ("layer", "head", escape(score_name), "norm of alpha x offset"):
        table.add_column(name, justify="right")
    for layer, head, norm, score in rows[:TOP_HEADS]:
        table.add_row(str(layer), str(head), _number(score), f"{norm:.3g}")
    return table


def _number(value: object) -> str:
    return _shown(number(value))


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def plain(value: object) -> str:
    """Text from a file as one short line: control characters must not reach the terminal."""
    text = str(value)[:_MAX_TEXT]
    return "".join(character if character.isprintable() else " " for character in text)


def directions_as_json(made: Directions) -> dict[str, Any]:
    """Everything the file holds but its arrays."""
    whole = made.whole
    return {
        **header(made),
        "digest": made.digest,
        "heads": [
            {"layer": int(layer), "head": int(head), "score": short(score)}
            for layer, head, score in zip(whole.layers, whole.heads, whole.scores, strict=True)
        ],
    }


def directions_card(made: Directions) -> RenderableType:
    """The card of one directions file."""
    table = Table.grid(padding=(0, 2))
    inventory, model = made.inventory, made.model
    known = int(made.whole.rows.sum())
    lines = {
        "directions of": model.base_model,
        "digest": made.digest,
        "shape": f"{model.num_layers} layers x {model.num_heads} heads x {model.head_dim}",
        "steers": f"{len(made.layers)} heads in {len(np.unique(made.layers))} layers",
        "inventory": f"{len(inventory.items)} items of {inventory.name}"
        + (f", learned from {known}" if known < len(inventory.items) else ""),
        "chats": f"perplexity {made.budget.plain:.3g} plain; {made.reach:g} of the alpha they bear is taken",
        "expect": f"alignment {made.expected:.2f} on unseen statements from a whole questionnaire",
        "read in": model.dtype,
        "made by": made.tool,
    }
    for name, value in lines.items():
        table.add_row(Text(name, style="bold"), escape(plain(value)))
    return Group(table, Text(), _followed(made), Text(), _telling(made))


def _followed(made: Directions) -> Table:
    table = Table(title="How held-out statements follow typical people, r", title_justify="left")
    table.add_column("trait")
    for dose in made.doses:
        table.add_column(f"{dose:g} x alpha", justify="right")
    for trait, row in zip(TRAITS, made.followed, strict=True):
        table.add_row(trait_name(trait), *("-" if np.isnan(r) else f"{r:.2f}" for r in row))
    return table


def _telling(made: Directions) -> Table:
    table = Table(title=f"The {FORMS[0]} items to ask first", title_justify="left")
    for name in ("item", "I ...", "trait", "key"):
        table.add_column(name)
    for place in made.order[: FORMS[0]]:
        item = made.inventory.items[place]
        table.add_row(item.id, escape(plain(item.text)), item.trait, "+" if item.sign > 0 else "-")
    return table
