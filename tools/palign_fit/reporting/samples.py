"""What the model itself says: sample answers, and the alpha curve where a file records none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from palign_fit.errors import InputError
from palign_fit.evaluation.huggingface import HuggingFaceBackend
from palign_fit.evaluation.judge import QUESTIONS
from palign_fit.evaluation.tasks import Setting, Speech
from palign_fit.inputs.inventory import built_in
from palign_fit.model import prompts
from palign_fit.model.chats import Chats
from palign_fit.model.likelihood import statement_loglik
from palign_fit.model.steer import steered
from palign_fit.progress import Progress, no_tick
from palign_fit.reporting.record import Point, number, positive
from palign_fit.reporting.sources import Entry
from vllm_palign.persona import load

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel

MAX_SAMPLED = 12
"""Most personas that are asked; each costs generation time."""

MAX_TOKENS = 120
ASKED = tuple(next(one for one in QUESTIONS if one.trait == trait) for trait in "EAN")
"""The open questions of ``palign-fit judge`` that a reader sees most in."""

FEWEST_POINTS = 3
"""An alpha curve of fewer recorded points is measured."""

STRENGTHS = (0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Sample:
    """One question, answered greedily without and with the persona."""

    question: str
    plain: str
    steered: str


@dataclass(frozen=True)
class Curve:
    """An alpha curve measured here. ``effect`` of its points is how far the built-in statements move:
    standard deviation over them of the change in log-likelihood, nats per token. No answers needed."""

    points: tuple[Point, ...]
    perplexity_plain: float | None


@dataclass(frozen=True)
class Spoken:
    """What was asked of one persona; ``curve`` None where the file's own is good enough."""

    samples: tuple[Sample, ...]
    curve: Curve | None


def chosen(entries: Sequence[Entry], model: OpenedModel) -> list[Entry]:
    """The first MAX_SAMPLED that were made for this geometry. Raises InputError if there is none."""
    shape = (model.num_layers, model.num_heads, model.head_dim)
    fitting = [entry for entry in entries if entry.shape == shape]
    if not fitting:
        raise InputError(
            f"--model {model.base_model}: has (layers, heads, head_dim) {shape}, the personas here "
            f"are for {sorted({entry.shape for entry in entries})[:4]}; give the model they were made on"
        )
    return fitting[:MAX_SAMPLED]


def speak(model: OpenedModel, entries: Sequence[Entry], progress: Progress) -> dict[str, Spoken]:
    """Entry id -> what the model says under it; ``entries`` as ``chosen`` returns them."""
    backend = HuggingFaceBackend(model, strength=1.0)
    needing = [one for one in entries if needs_curve(one)]
    baseline = _Statements(model) if needing else None
    spoken: dict[str, Spoken] = {}
    with progress("answers", len(entries) + 1) as tick:
        plain = _answers(backend, Setting())
        tick(1)
        for entry in entries:
            persona = load(entry.path)
            if persona.digest != entry.digest:
                raise InputError(f"{entry.path}: was replaced while it was read; start again")
            said = _answers(backend, Setting(persona_id=entry.id, persona=persona, scope="answers"))
            samples = tuple(
                Sample(question.text, *pair)
                for question, *pair in zip(ASKED, plain, said, strict=True)
            )
            curve = baseline.curve(entry) if baseline and entry in needing else None
            spoken[entry.id] = Spoken(samples, curve)
            tick(1)
    return spoken


def needs_curve(entry: Entry) -> bool:
    """Whether the file records too little to draw, and the persona has an alpha to vary."""
    drawn = [trial for trial in entry.record.trials if trial.perplexity is not None]
    return len(drawn) < FEWEST_POINTS and entry.alpha != 0


def _answers(backend: HuggingFaceBackend, setting: Setting) -> list[str]:
    speeches = [Speech(setting, question.text) for question in ASKED]
    return backend.speak(speeches, MAX_TOKENS, no_tick)


class _Statements:
    """The built-in statements and chats under the unsteered model."""

    def __init__(self, model: OpenedModel) -> None:
        self.model = model
        self.prefix = prompts.chat_prefix(model.tokenizer, prompts.OPENINGS[0])
        self.statements = [
            prompts.continuation(model.tokenizer, prompts.statement(item.text))
            for item in built_in().items
        ]
        self.chats = Chats(model)
        self.plain, self.perplexity = self._measure(None, 0.0)

    def curve(self, entry: Entry) -> Curve:
        points = []
        for strength in STRENGTHS:
            loglik, drift = self._measure(entry, strength)
            moved = float(np.std(loglik - self.plain))
            points.append(
                Point(
                    strength * entry.alpha,
                    number(moved),
                    alignment=None,
                    perplexity=positive(drift),
                )
            )
        return Curve(
            tuple(sorted(points, key=lambda point: point.alpha)), positive(self.perplexity)
        )

    def _measure(self, entry: Entry | None, strength: float) -> tuple[np.ndarray, float]:
        if entry is None:
            return self._loglik(), self.chats.plain
        persona = load(entry.path)
        with steered(self.model, persona, strength):
            loglik = self._loglik()
        return loglik, self.chats.under(persona, strength * persona.alpha)

    def _loglik(self) -> np.ndarray:
        return statement_loglik(self.model, self.prefix, self.statements)


def left_out(entries: Sequence[Entry], asked: Sequence[Entry], model: OpenedModel) -> Iterator[str]:
    """In sentences, who was not asked."""
    if len(asked) < len(entries):
        yield (
            f"sample answers of {len(entries) - len(asked)} personas: {model.base_model} was asked with the "
            f"first {len(asked)} that were made for it"
        )
