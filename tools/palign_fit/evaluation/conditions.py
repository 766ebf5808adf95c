"""What each condition does to the model for each subject."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from palign_fit.errors import InputError
from palign_fit.evaluation import texts
from palign_fit.evaluation.split import Sheet, trait_means
from palign_fit.evaluation.tasks import Setting
from vllm_palign.directions.inventory import Inventory
from vllm_palign.persona import Persona

PLAIN = "plain"
PALIGN = "palign"


@dataclass(frozen=True)
class Condition:
    """``prompt``: "few-shot", "personality" or none; ``method``: whose persona steers, if any."""

    name: str
    description: str
    prompt: str = ""
    method: str = ""


CONDITIONS = {
    one.name: one
    for one in (
        Condition(PLAIN, "the model as it is"),
        Condition("few-shot", "training answers in the system prompt", prompt="few-shot"),
        Condition(
            "personality-prompt",
            "training trait scores in words in the system prompt",
            prompt="personality",
        ),
        Condition(
            "pas-reference", "persona by the published letter contrast", method="pas-reference"
        ),
        Condition(PALIGN, "the persona", method="palign"),
        Condition(
            "palign+prompt",
            "the persona and the personality prompt",
            prompt="personality",
            method="palign",
        ),
    )
}

Personas = Mapping[str, Sequence[Persona]]
"""Method -> one persona a subject, in order."""


def check_learned(
    conditions: Sequence[str],
    files: Sequence[Persona] | None,
    train_items: Collection[str] | None,
) -> None:
    """Raises InputError where a condition learns from answers and nobody says which were held out."""
    learning = [name for name in conditions if CONDITIONS[name].method or CONDITIONS[name].prompt]
    if learning and files is None and train_items is None:
        raise InputError(
            f"{', '.join(learning)}: what was held out is unknown: give --personas (their files say what they "
            "were made from), or --train-items"
        )


def check_prompts(conditions: Sequence[str], sheets: Sequence[Sheet]) -> None:
    """Raises InputError where a prompt is to be written of somebody's training answers, and there are none."""
    written = [name for name in conditions if CONDITIONS[name].prompt]
    bare = [sheet.subject.id for sheet in sheets if not sheet.train.any()]
    if written and bare:
        raise InputError(
            f"{', '.join(written)}: {len(bare)} subjects have no training answers to write a prompt of, such as "
            f"{bare[0]!r}; give --train-items, or leave prompts out of --conditions"
        )


def settings(
    condition: Condition, sheets: Sequence[Sheet], inventory: Inventory, personas: Personas
) -> list[Setting]:
    """One setting a subject. A method without personas steers by name (a server's own)."""
    files = personas.get(condition.method)
    return [
        Setting(
            system=system_prompt(condition.prompt, sheet, inventory),
            persona_id=sheet.subject.id if condition.method else None,
            persona=files[place] if files else None,
        )
        for place, sheet in enumerate(sheets)
    ]


def system_prompt(kind: str, sheet: Sheet, inventory: Inventory) -> str | None:
    """The prompt made of the subject's training answers, and of nothing else."""
    if not kind:
        return None
    if kind == "personality":
        return texts.personality_prompt(trait_means(sheet, inventory, sheet.train))
    rows = np.flatnonzero(sheet.train)
    return texts.few_shot_prompt(
        [(inventory.items[row], float(sheet.subject.agreement[row])) for row in rows]
    )
