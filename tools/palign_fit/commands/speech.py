"""The options of evaluate about what the model says."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from palign_fit.commands import options
from palign_fit.commands.common import opened_model
from palign_fit.commands.measuring import listed
from palign_fit.errors import InputError
from palign_fit.model.cache import Cache
from palign_fit.progress import Progress

if TYPE_CHECKING:
    from palign_fit.evaluation.speech.plan import SpeechPlan
    from palign_fit.evaluation.speech.reader import Reader
    from palign_fit.model.model import OpenedModel


def speech_plan(
    strengths: str, systems: Sequence[str] | None, questions: str, turns: int
) -> SpeechPlan:
    """``questions``: ``test`` or ``train:3``. Raises InputError."""
    from palign_fit.evaluation.speech.plan import SpeechPlan

    try:
        doses = tuple(float(one) for one in listed(strengths))
    except ValueError as error:
        raise InputError(f"--strengths {strengths!r}: wanted numbers, as 0.5,1,2") from error
    part, _, each = questions.partition(":")
    if each and not each.isdecimal():
        raise InputError(f"--questions {questions!r}: wanted test, train, or as test:2")
    given = {} if not systems else {"systems": tuple(dict.fromkeys(systems))}
    return SpeechPlan(
        strengths=tuple(dict.fromkeys(doses)),
        part=part,
        each=int(each) if each else None,
        turns=turns,
        **given,
    )


def open_readers(
    named: Sequence[str],
    measures: Collection[str],
    model: str,
    opened: OpenedModel | None,
    cache: Cache,
    progress: Progress,
    *,
    device: options.Device,
    dtype: options.Dtype,
    memory: float | None,
) -> list[Reader]:
    """The readers that ``named`` are: URLs, or models that are opened here, ``model`` itself if it is open or none is
    named. Raises InputError."""
    from palign_fit.evaluation.speech.reader import RatingReader, WordReader

    if not {"answers", "fading"} & set(measures):
        return []
    readers: list[Reader] = []
    for name in dict.fromkeys(named or [model]):
        if name.startswith(("http://", "https://")):
            url, _, asked = name.partition("#")
            readers.append(RatingReader(url, asked or None, os.environ.get("OPENAI_API_KEY")))
        elif name == model and opened is not None:
            readers.append(WordReader(opened, cache))
        else:
            own = opened_model(progress, name, device, dtype, memory=memory)
            readers.append(WordReader(own, cache))
    twice = {one.name for one in readers if [other.name for other in readers].count(one.name) > 1}
    if twice:
        raise InputError(
            f"--reader: two are called {', '.join(sorted(twice))}; wanted different names"
        )
    return readers
