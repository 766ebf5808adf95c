"""What steering costs in ordinary use: chats that move, facts, sums and forms that are lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from palign_fit.evaluation.conditions import PLAIN
from palign_fit.evaluation.huggingface import HuggingFaceBackend
from palign_fit.evaluation.intervals import Estimate, as_json, average
from palign_fit.evaluation.speech.asking import Asker, kept
from palign_fit.evaluation.speech.plan import NONE, Case, People, SpeechPlan, cases
from palign_fit.evaluation.speech.script import Chat, chats, facts
from palign_fit.evaluation.tasks import Setting
from palign_fit.model.cache import Arrays
from palign_fit.model.differences import differences
from palign_fit.model.prompts import chat_prefix, continuation
from palign_fit.progress import Tick
from vllm_palign.directions.numbers import Reals

CHAT_TOKENS = 64
"""Of the plain model's answer to a chat."""

FACT_TOKENS = 32

Figures = dict[str, Estimate]


def measure_damage(
    asker: Asker,
    backend: HuggingFaceBackend,
    people: People,
    conditions: Sequence[str],
    plan: SpeechPlan,
) -> dict[Case, dict[str, Figures]]:
    """Per case ``kl`` and ``same_top`` of chats by kind and in all, ``right`` and ``still`` of facts by kind and in all.

    Without the system prompts of ``plan``, which order a form of their own.
    """
    wanted = list(cases(conditions, plan.strengths, (NONE,)))
    moved = _moved(asker, backend, people, wanted)
    kinds = np.array([chat.kind for chat in chats()])
    right = {case: _right(asker, people, case) for case in wanted}
    fact_kinds = np.array([fact.kind for fact in facts()])
    plain = right[Case(PLAIN, None, NONE)]
    return {
        case: {
            "kl": _by_kind(moved[case][..., 0], kinds, people),
            "same_top": _by_kind(moved[case][..., 1], kinds, people),
            "right": _by_kind(right[case], fact_kinds, people),
            "still": _by_kind(np.where(plain > 0, right[case], np.nan), fact_kinds, people),
        }
        for case in wanted
    }


def damage_json(found: dict[Case, dict[str, Figures]]) -> list[dict[str, Any]]:
    """The report's ``damage``."""
    return [
        {**case.as_json(), **{name: as_json(figures) for name, figures in measured.items()}}
        for case, measured in found.items()
    ]


def _by_kind(values: Reals, kinds: Any, people: People) -> Figures:
    """float64 [S, N] as a mean over people of each kind and, each kind counted alike, of ``all``."""
    by_kind = {
        str(kind): people.bootstrap.mean(_over(values[:, kinds == kind]))
        for kind in dict.fromkeys(kinds)
    }
    return {"all": average(list(by_kind.values())), **by_kind}


def _over(values: Reals) -> Reals:
    """Each person's mean over what is known: float64 [S], NaN where nothing is."""
    known = np.isfinite(values)
    sums = np.where(known, values, 0.0).sum(1)
    return np.where(known.any(1), sums / np.maximum(known.sum(1), 1), np.nan)


def _right(asker: Asker, people: People, case: Case) -> Reals:
    """1 where a person's answer is right, 0 where not: float64 [S, F]."""
    asked = facts()
    said = asker.answers(
        people.settings(case),
        [fact.question for fact in asked],
        FACT_TOKENS,
        f"{case.label}: facts",
    )
    found = np.array(
        [[fact.right(text) for fact, text in zip(asked, own, strict=True)] for own in said],
        dtype=np.float64,
    )
    return np.broadcast_to(found, (len(people.sheets), len(asked)))


def _moved(
    asker: Asker, backend: HuggingFaceBackend, people: People, wanted: Sequence[Case]
) -> dict[Case, Reals]:
    """Per case of every person's chats KL from plain and share of same likeliest tokens: float64 [S, N, 2]."""
    (said,) = asker.answers(
        [Setting(scope="answers")], [chat.text for chat in chats()], CHAT_TOKENS, "plain: chats"
    )
    talks = [
        (chat, answer)
        for chat, text in zip(chats(), said, strict=True)
        if (answer := tuple(continuation(backend.tokenizer, text)[:CHAT_TOKENS]))
    ]
    settings = {case: people.settings(case) for case in wanted}
    asked = [(chat, answer, case) for chat, answer in talks for case in wanted]

    def compute(places: list[int], tick: Tick) -> list[Arrays]:
        found = []
        for chat, answer, group in _by_chat([asked[place] for place in places]):
            every = [one for case in group for one in settings[case]]
            moved = _differences(backend, chat, answer, every)
            tick(len(every))
            ends = np.cumsum([len(settings[case]) for case in group])[:-1]
            found += [{"moved": part} for part in np.split(moved, ends)]
        return found

    keys = [
        {
            "what": "differences 1",
            "model": asker.identity,
            "chat": chat.text,
            "answer": list(answer),
            "settings": [asker.of_setting(one) for one in settings[case]],
        }
        for chat, answer, case in asked
    ]
    sizes = [len(settings[case]) for _, _, case in asked]
    entries = kept(asker.cache, keys, sizes, compute, asker.progress, "chats moved")
    moved = {case: np.full((len(people.sheets), len(chats()), 2), np.nan) for case in wanted}
    order = {chat: place for place, chat in enumerate(chats())}
    for (chat, _, case), entry in zip(asked, entries, strict=True):
        moved[case][:, order[chat]] = entry["moved"]
    return moved


def _by_chat(
    asked: Sequence[tuple[Chat, tuple[int, ...], Case]],
) -> list[tuple[Chat, tuple[int, ...], list[Case]]]:
    """Neighbours of one chat together."""
    groups: list[tuple[Chat, tuple[int, ...], list[Case]]] = []
    for chat, answer, case in asked:
        if not groups or groups[-1][0] != chat:
            groups.append((chat, answer, []))
        groups[-1][2].append(case)
    return groups


def _differences(
    backend: HuggingFaceBackend, chat: Chat, answer: Sequence[int], settings: Sequence[Setting]
) -> Reals:
    def prompt(system: str | None) -> list[int]:
        return chat_prefix(backend.tokenizer, chat.text, system)

    others = [(prompt(one.system), backend.dose(one)) for one in settings]
    return differences(backend.model, prompt(None), answer, others)
