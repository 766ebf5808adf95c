"""From people and personas to the finished report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from palign_fit.errors import InputError
from palign_fit.evaluation.conditions import CONDITIONS, PALIGN, PLAIN, check_prompts
from palign_fit.evaluation.figures import PUBLISHED, Figures
from palign_fit.evaluation.fitting import fit_learners
from palign_fit.evaluation.readings import SPOKEN, Plan, read_all
from palign_fit.evaluation.speech.measuring import measure_speech
from palign_fit.evaluation.speech.reader import Reader
from palign_fit.evaluation.split import Sheet, split_all, trait_masks
from palign_fit.evaluation.tasks import Backend
from palign_fit.inputs.answers import Subject
from palign_fit.model.cache import Cache
from palign_fit.model.model import OpenedModel
from palign_fit.progress import Progress, no_progress
from vllm_palign.directions.inventory import Inventory
from vllm_palign.persona import Persona

FORMAT, FORMAT_VERSION = "palign.evaluation", 1
DEFAULT_CONDITIONS = (PLAIN, "few-shot", "personality-prompt", PALIGN, "palign+prompt")
_MAX_NAMED = 5


def evaluate_personas(
    backend: Backend,
    model: OpenedModel | None,
    subjects: Sequence[Subject],
    inventory: Inventory,
    plan: Plan,
    *,
    train_items: Collection[str] | None = None,
    files: Sequence[Persona] | None = None,
    readers: Sequence[Reader] = (),
    cache: Cache | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """The whole report as JSON-ready data (docs/evaluation.md has the schema).

    ``files``: the persona of every subject, in order. Personas that are not given are fitted on
    ``model`` from ``train_items`` alone, and stay in ``cache``; without ``model`` (a server) they are
    steered by name. ``readers`` of what the model says; without, the plain model itself.
    Raises InputError where neither says what may be learned from.
    """
    _check(plan, model, files, train_items)
    sheets = split_all(subjects, inventory, train_items, files)
    check_prompts(plan.conditions, sheets)
    given: dict[str, Sequence[Persona]] = {PALIGN: files} if files else {}
    wanted = {CONDITIONS[name].method for name in plan.conditions} - {"", *given}
    fittings = {
        method: fit_learners(
            model, sheets, inventory, method, plan.seed, cache or Cache(None), progress
        )
        for method in sorted(wanted)
        if model is not None
    }
    personas = given | {method: fitting.personas for method, fitting in fittings.items()}
    readings = read_all(backend, sheets, inventory, personas, plan, progress)
    spoken = [name for name in plan.measures if name in SPOKEN]
    speech = measure_speech(
        backend, model, sheets, inventory, personas, spoken,
        conditions=plan.conditions, plan=plan.speech, readers=readers, seed=plan.seed,
        cache=cache or Cache(None), progress=progress,
    )  # fmt: skip
    figures = Figures(sheets, inventory, plan.seed)
    own = personas.get(PALIGN)
    return {
        **head(FORMAT, FORMAT_VERSION, backend, inventory),
        "settings": {
            "conditions": list(plan.conditions),
            "measures": list(plan.measures),
            "openings": plan.openings,
            "strength": plan.strength,
            "seed": plan.seed,
            "train_items": sorted(train_items) if train_items is not None else None,
        },
        "fitted_in": {
            method: str(fitting.folder) for method, fitting in fittings.items() if fitting.folder
        },
        "usual_answers": "means of the other evaluated subjects"
        if figures.usual_measured
        else "typical trait means",
        "seen_in_fitting": sum(sheet.seen for sheet in sheets),
        "subjects": [
            {**subject, "persona": _persona(own[place]) if own else None}
            for place, subject in enumerate(figures.subjects())
        ],
        "conditions": figures.conditions(readings, plan.conditions),
        "baselines": figures.baselines(),
        "published": {"error": PUBLISHED},
        "speech": speech,
        "warnings": list(_warnings(sheets, inventory, own)),
    }


def _check(
    plan: Plan,
    model: OpenedModel | None,
    files: Sequence[Persona] | None,
    train_items: Collection[str] | None,
) -> None:
    """Raises InputError where nobody says what was held out, or no server has what is asked for."""
    if files is None and train_items is None:
        raise InputError(
            "what was held out is unknown: give --personas (their files say what they were made "
            "from), or --train-items and they are fitted here from those"
        )
    unserved = [name for name in plan.conditions if CONDITIONS[name].method not in ("", PALIGN)]
    if model is None and unserved:
        raise InputError(
            f"condition {', '.join(unserved)}: its personas are fitted here and no server has them; "
            "leave --server out"
        )
    if model is None and "damage" in plan.measures:
        raise InputError("--measures damage: no server tells all probabilities; leave --server out")


def head(kind: str, kind_version: int, backend: Backend, inventory: Inventory) -> dict[str, Any]:
    """What every report begins with: its format, who made it, the model and the items."""
    return {
        "format": kind,
        "format_version": kind_version,
        "tool": f"palign-fit {version('vllm-palign')}",
        "model": backend.model_name,
        "backend": backend.as_json(),
        "inventory": {
            "name": inventory.name,
            "digest": inventory.digest,
            "items": len(inventory.items),
        },
    }


def _persona(persona: Persona) -> dict[str, Any]:
    """What the report says of the persona that ``palign`` steered with."""
    fit: Mapping[str, Any] = persona.fit
    recorded = {
        f"recorded_{name}": value
        if isinstance(value := fit.get(name), (int, float)) and not isinstance(value, bool)
        else None
        for name in ("alignment", "rank")
    }
    return {
        "name": persona.name,
        "digest": persona.digest,
        "method": persona.method,
        "alpha": persona.alpha,
        **recorded,
        "weak": fit.get("weak") is True,
    }


def _warnings(
    sheets: Sequence[Sheet], inventory: Inventory, personas: Sequence[Persona] | None
) -> Iterator[str]:
    seen = [place for place, sheet in enumerate(sheets) if sheet.seen]
    if seen:
        text = (
            f"NOT HELD OUT: the personas of {_named([sheets[place].subject.id for place in seen])} were "
            "fitted on these same answers, or may have been; the figures show how well they "
            "reproduce them, not how well they predict the person"
        )
        files = [personas[place] for place in seen] if personas else []
        recorded = [_persona(persona)["recorded_alignment"] for persona in files]
        known = [number for number in recorded if number is not None]
        if known:
            text += (
                f". Cross-validated alignment that the files record: mean {np.mean(known):.3f} "
                f"over {len(known)}"
            )
        yield text
    others = [persona.name for persona in personas or () if persona.method != PALIGN]
    if others:
        yield f"condition palign: the personas of {_named(others)} were made by another method"
    masks = trait_masks(inventory).values()
    empty = [
        sheet.subject.id
        for sheet in sheets
        if not all((mask & sheet.held_out).any() for mask in masks)
    ]
    if empty:
        yield f"{_named(empty)}: a trait has no measured item, so no sum of errors"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
