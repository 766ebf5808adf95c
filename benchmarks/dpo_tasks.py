"""What the DPO benchmark learns from and measures by: a person's answers, or preference pairs."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from palign_fit.evaluation import measures as ms
from palign_fit.evaluation.huggingface import HuggingFaceBackend
from palign_fit.evaluation.split import Sheet
from palign_fit.evaluation.tasks import Setting, read_perplexity, read_statements
from palign_fit.fit import open_fitter
from palign_fit.inputs.answers import Subject
from palign_fit.inputs.pairs import Pairs, read_pairs
from palign_fit.methods.pairs.data import margins, tokenised
from palign_fit.methods.pairs.fitter import HeldOut, PairSettings, fit_pairs
from palign_fit.methods.settings import Settings
from palign_fit.model.likelihood import reader_for
from palign_fit.model.model import OpenedModel
from palign_fit.model.prompts import OPENINGS, statement
from palign_fit.model.steer import steered

from vllm_palign.directions.inventory import Inventory
from vllm_palign.directions.numbers import Mask, Reals
from vllm_palign.directions.scores import deviations
from vllm_palign.persona import Persona

CLEAR = 0.5
"""Scale points from the usual answer, from which a statement counts as agreed with or not."""

Row = dict[str, Any]
Turns = list[dict[str, str]]


class Task(Protocol):
    """What both methods learn from, and how both are measured."""

    name: str
    measure_name: str

    def fit(self, model: OpenedModel) -> tuple[Persona, float, float]:
        """The persona, seconds of what other subjects share, seconds of its own."""
        ...

    def preferences(self, count: int, seed: int) -> list[dict[str, Turns]]:
        """Training pairs in TRL's conversational form."""
        ...

    def measure(self, backend: HuggingFaceBackend, persona: Persona | None) -> Row: ...


class Prepared:
    """What palign-fit computes once for everybody who learns from the items in ``used`` bool [N]."""

    def __init__(self, model: OpenedModel, inventory: Inventory, used: Mask) -> None:
        began = time.perf_counter()
        self.fitter = open_fitter(model, inventory, used, Settings(heads=heads_of(model)))
        self.seconds = time.perf_counter() - began


class Person:
    """One subject: learned from training answers, measured on held-out statements."""

    measure_name = "alignment r"

    def __init__(
        self,
        sheet: Sheet,
        inventory: Inventory,
        usual: Reals,
        backend: HuggingFaceBackend,
        prepared: Prepared,
    ) -> None:
        self.sheet, self.inventory, self.prepared = sheet, inventory, prepared
        self.name = sheet.subject.id
        self.deviation = sheet.subject.agreement - usual
        self.plain = self._statements(backend, Setting())
        self.plain_perplexity = perplexity(backend)

    def fit(self, model: OpenedModel) -> tuple[Persona, float, float]:
        learner = Subject(
            self.name, np.where(self.sheet.train, self.sheet.subject.agreement, np.nan)
        )
        began = time.perf_counter()
        persona = self.prepared.fitter.fit(learner)
        seconds = time.perf_counter() - began
        return persona, self.prepared.seconds, seconds

    def preferences(self, count: int, seed: int) -> list[dict[str, Turns]]:
        away = np.where(
            self.sheet.train, deviations(self.sheet.subject.agreement, self.inventory), 0.0
        )
        sides = [np.flatnonzero(side) for side in (away >= CLEAR, away <= -CLEAR)]
        if min(map(len, sides)) == 0:
            raise SystemExit(f"{self.name}: the answers leave nothing to prefer")
        rng = np.random.default_rng(seed)
        # Every statement as often as any other, in a new order each time round.
        liked, disliked = (
            np.concatenate([rng.permutation(side) for _ in range(-(-count // len(side)))])[:count]
            for side in sides
        )
        said = [[_turn("assistant", statement(item.text))] for item in self.inventory.items]
        return [
            {
                "prompt": [_turn("user", OPENINGS[at % len(OPENINGS)])],
                "chosen": said[yes],
                "rejected": said[no],
            }
            for at, (yes, no) in enumerate(zip(liked, disliked, strict=True))
        ]

    def measure(self, backend: HuggingFaceBackend, persona: Persona | None) -> Row:
        change = self._statements(backend, setting_of(persona)) - self.plain
        return {
            "measure": ms.correlation(change, self.deviation, self.sheet.held_out),
            "perplexity_ratio": perplexity(backend, persona) / self.plain_perplexity,
        }

    def _statements(self, backend: HuggingFaceBackend, setting: Setting) -> Any:
        rows = self.sheet.held_out[None]
        items = self.inventory.items
        return read_statements(backend, [setting], items, rows, OPENINGS[:1], _no_tick)[0]


class Preferences:
    """Preference pairs: learned from four fifths of them, measured on the rest."""

    measure_name = "right way"

    def __init__(self, path: Path, backend: HuggingFaceBackend, seed: int) -> None:
        pairs = read_pairs(path).pairs
        order = np.random.default_rng(seed).permutation(len(pairs))
        self.name = path.stem
        self.train = Pairs(tuple(pairs[at] for at in order[len(pairs) // 5 :]))
        self.lines = [tokenised(backend.tokenizer, pairs[at]) for at in order[: len(pairs) // 5]]
        self.reader = reader_for(backend.model)
        self.plain = margins(backend.model, self.reader, self.lines)
        self.plain_perplexity = perplexity(backend)

    def fit(self, model: OpenedModel) -> tuple[Persona, float, float]:
        began = time.perf_counter()
        persona = fit_pairs(model, self.train, PairSettings(self.name, heads=heads_of(model)))
        return persona, 0.0, time.perf_counter() - began

    def preferences(self, count: int, seed: int) -> list[dict[str, Turns]]:
        return [
            {
                "prompt": [_turn(role, content) for role, content in pair.prompt],
                "chosen": [_turn("assistant", pair.chosen)],
                "rejected": [_turn("assistant", pair.rejected)],
            }
            for pair in self.train.pairs
        ]

    def measure(self, backend: HuggingFaceBackend, persona: Persona | None) -> Row:
        model = backend.model
        with steered(model, persona) if persona else nullcontext():
            held = HeldOut.of(self.plain, margins(model, self.reader, self.lines))
        ratio = perplexity(backend, persona) / self.plain_perplexity
        return {"measure": held.accuracy, "perplexity_ratio": ratio, **vars(held)}


def setting_of(persona: Persona | None) -> Setting:
    return Setting(persona_id=persona.name if persona else None, persona=persona)


def perplexity(backend: HuggingFaceBackend, persona: Persona | None = None) -> float:
    return float(read_perplexity(backend, [setting_of(persona)], _no_tick)[0])


def heads_of(model: OpenedModel) -> int:
    """How many heads to steer: the default, or all of a small model's."""
    return min(Settings.heads, model.num_layers * model.num_heads)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _no_tick(_: int, /, *, free: bool = False) -> None:
    pass
