"""Measures as likelihoods of tokens: what a backend has to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from palign_fit.model.prompts import NEUTRAL_TEXT, chat_prefix, continuation, statement
from palign_fit.progress import Tick
from vllm_palign.directions.inventory import Item
from vllm_palign.directions.numbers import Reals
from vllm_palign.persona import Persona


@dataclass(frozen=True, eq=False)
class Setting:
    """What one subject gets under one condition.

    ``system``: system prompt, or None. ``persona_id``: the persona that steers, or None; a server
    knows it by this name, in this process it is ``persona``. ``strength``: None is the backend's own.
    ``scope`` of what is said: which tokens are steered (docs/scope.md).
    """

    system: str | None = None
    persona_id: str | None = None
    persona: Persona | None = None
    strength: float | None = None
    scope: str = "all"


@dataclass(frozen=True, eq=False)
class Task:
    """Score every continuation after ``prefix`` (at least one token) under the setting's persona."""

    setting: Setting
    prefix: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Speech:
    """An open question asked under one setting."""

    setting: Setting
    question: str


class Backend(Protocol):
    """Something that runs the model. ``tokenizer`` is the model's own."""

    model_name: str

    @property
    def tokenizer(self) -> Any: ...

    def score(self, tasks: Sequence[Task], tick: Tick) -> list[list[Reals]]:
        """Per task and continuation the log-probability of each token, float64 [T], nats.

        ``tick`` hears of every task done.
        """
        ...

    def speak(self, speeches: Sequence[Speech], max_tokens: int, tick: Tick) -> list[str]:
        """The answers in order, without special tokens: the likeliest token at every step, so that runs
        repeat. ``tick`` hears of every one."""
        ...

    def converse(
        self,
        settings: Sequence[Setting],
        users: Sequence[Sequence[str]],
        max_tokens: int,
        tick: Tick,
    ) -> list[list[str]]:
        """Per conversation, a setting and what its user says turn by turn, the answer of every turn; the past of a turn
        is what was said and answered before. ``tick`` hears of every answer."""
        ...

    def as_json(self) -> dict[str, Any]: ...


def read_statements(
    backend: Backend,
    settings: Sequence[Setting],
    items: Sequence[Item],
    rows: npt.NDArray[np.bool_],
    openings: Sequence[str],
    tick: Tick,
) -> Reals:
    """Mean log-likelihood per token of the statements: float64 [S, N], mean over ``openings``.

    Only the items in ``rows`` bool [S, N] are read; NaN elsewhere.
    """
    lines = [tuple(continuation(backend.tokenizer, statement(item.text))) for item in items]
    tasks = [
        Task(
            setting,
            tuple(chat_prefix(backend.tokenizer, opening, setting.system)),
            tuple(line for line, used in zip(lines, wanted, strict=True) if used),
        )
        for opening in openings
        for setting, wanted in zip(settings, rows, strict=True)
    ]
    result = np.zeros((len(openings), *rows.shape))
    result[:, ~rows] = np.nan
    for place, scores in enumerate(backend.score(tasks, tick)):
        opening, subject = divmod(place, len(settings))
        result[opening, subject, rows[subject]] = [tokens.mean() for tokens in scores]
    return np.asarray(result.mean(0))


def read_perplexity(backend: Backend, settings: Sequence[Setting], tick: Tick) -> Reals:
    """Perplexity of the neutral text: float64 [S].

    Without chat template, after the setting's system prompt if there is one. The text's first token
    is never counted, so that every condition is measured on the same tokens.
    """
    text = tuple(backend.tokenizer(NEUTRAL_TEXT, add_special_tokens=False)["input_ids"])
    tasks = []
    for setting in settings:
        lead = f"{setting.system}\n\n" if setting.system else ""
        before = list(backend.tokenizer(lead)["input_ids"])
        tasks.append(Task(setting, (*before, text[0]), (text[1:],)))
    return np.array([np.exp(-scores[0].mean()) for scores in backend.score(tasks, tick)])
