"""Which answers of a subject a persona was made from, and which it never saw."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palign_fit.errors import InputError
from palign_fit.inputs.answers import Subject
from palign_fit.inputs.files import read_text, strict_json
from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask, Reals
from vllm_palign.directions.traits import TRAITS, TYPICAL
from vllm_palign.persona import Persona

MIN_HELD_OUT = 10
"""Fewest unseen answers worth measuring on; with fewer all answers are used, and it is said."""

MIN_POPULATION = 10
"""Fewest subjects whose mean answer to an item stands for what people usually answer."""


@dataclass(frozen=True, eq=False)
class Sheet:
    """One subject's answers, split. Masks are bool [N].

    ``train``: answers that prompts, fits and baselines may use. ``held_out``: what is measured.
    ``seen``: too few unseen answers were left, so ``held_out`` is every answer.
    """

    subject: Subject
    train: Mask
    held_out: Mask
    seen: bool


def read_train_items(path: Path, inventory: Inventory) -> frozenset[str]:
    """Item ids from one id a line, a JSON list, or PAPI's {"train_index": [1, ...]} (1 is i1).

    Raises InputError for ids that the inventory does not have.
    """
    text = read_text(path)
    listed: Any
    if text.lstrip()[:1] in ("{", "["):
        listed = strict_json(text, str(path))
        listed = listed.get("train_index") if isinstance(listed, dict) else listed
    else:
        listed = [line.strip() for line in text.splitlines() if line.strip()]
    if not isinstance(listed, list) or not listed:
        raise InputError(
            f"{path}: holds no list of items; wanted one id a line, a JSON list of ids, or an object "
            "with train_index"
        )
    ids = {f"i{one}" if type(one) is int else str(one) for one in listed}
    unknown = sorted(ids - {item.id for item in inventory.items})
    if unknown:
        raise InputError(
            f"{path}: {len(unknown)} of {len(ids)} ids are not in inventory {inventory.name!r}, "
            f"such as {unknown[0][:40]!r}; give the inventory they belong to with --inventory"
        )
    return frozenset(ids)


def fitted_items(persona: Persona, inventory: Inventory) -> frozenset[str] | None:
    """Items whose answers went into ``persona``; None where the file does not say.

    A persona fitted on another inventory saw none of these items.
    """
    made_with = persona.fit.get("inventory")
    digest = made_with.get("digest") if isinstance(made_with, dict) else None
    if digest is not None and digest != inventory.digest:
        own = {item.id for item in inventory.items}
        listed = persona.fit.get("items")
        if isinstance(listed, list):
            return frozenset(str(one) for one in listed) & own
        return frozenset()
    listed = persona.fit.get("items")
    return frozenset(str(one) for one in listed) if isinstance(listed, list) else None


def split(
    subject: Subject,
    inventory: Inventory,
    train_items: Collection[str] | None,
    persona: Persona | None,
) -> Sheet:
    """The sheet of ``subject``: whatever went into ``persona`` is training, and all ``train_items``.

    A file that does not say what it was made from is believed to be made from ``train_items``; without
    these everything may have been seen.
    """
    answered = np.isfinite(subject.agreement)
    used: set[str] = set(train_items or ())
    if persona is not None:
        fitted = fitted_items(persona, inventory)
        if fitted is None and train_items is None:
            fitted = frozenset(item.id for item in inventory.items)
        used |= fitted or set()
    in_training = np.array([item.id in used for item in inventory.items])
    train, held_out = answered & in_training, answered & ~in_training
    if held_out.sum() >= MIN_HELD_OUT:
        return Sheet(subject, train, held_out, seen=False)
    return Sheet(subject, answered, answered, seen=True)


def split_all(
    subjects: Sequence[Subject],
    inventory: Inventory,
    train_items: Collection[str] | None,
    personas: Sequence[Persona] | None,
) -> list[Sheet]:
    """Everybody's sheet, in order; ``personas`` None where nobody has a file."""
    own: Sequence[Persona | None] = personas or [None] * len(subjects)
    return [
        split(subject, inventory, train_items, persona)
        for subject, persona in zip(subjects, own, strict=True)
    ]


def usual_answers(sheets: Sequence[Sheet], inventory: Inventory) -> tuple[Reals, bool]:
    """What people usually answer, leaving the subject out: float64 [S, N], and whether measured.

    With MIN_POPULATION subjects or more their mean answers, else the typical trait means.
    """
    typical = np.array([3 + item.sign * (TYPICAL[item.trait] - 3) for item in inventory.items])
    usual = np.tile(typical, (len(sheets), 1))
    if len(sheets) < MIN_POPULATION:
        return usual, False
    answers = np.array([sheet.subject.agreement for sheet in sheets])
    has = np.isfinite(answers)
    others = has.sum(0) - has
    sums = np.where(has, answers, 0.0)
    means = (sums.sum(0) - sums) / np.maximum(others, 1)
    return np.where(others >= MIN_POPULATION - 1, means, usual), True


def trait_means(
    sheet: Sheet, inventory: Inventory, rows: Mask, middle: Callable[[Reals], Any] = np.mean
) -> dict[str, float]:
    """Keyed mean answer (1..5) per trait over ``rows``, or another ``middle``; a trait without answers is left
    out."""
    signs = np.array([item.sign for item in inventory.items])
    keyed = np.where(signs > 0, sheet.subject.agreement, 6 - sheet.subject.agreement)
    means = {}
    for trait, mask in trait_masks(inventory).items():
        values = keyed[mask & rows & np.isfinite(keyed)]
        if len(values):
            means[trait] = float(middle(values))
    return means


def trait_masks(inventory: Inventory) -> Mapping[str, Mask]:
    """Trait -> bool [N]."""
    return {trait: np.array([item.trait == trait for item in inventory.items]) for trait in TRAITS}
