"""Questions to a backend, a person's answers kept together: what was said or read once is never asked again, and a
killed evaluation finds it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from palign_fit.evaluation.tasks import Backend, Setting, Speech
from palign_fit.model import checkpoint
from palign_fit.model.cache import Arrays, Cache, key_digest
from palign_fit.model.model import OpenedModel, model_dtype
from palign_fit.progress import Progress, Tick

TOGETHER = 64
"""Answers or readings that are computed before they are kept, where single entries are smaller."""

SIDE_BY_SIDE = 16
"""Conversations of one batch, at least if there are as many: long ones take much memory."""

_VERSION = 1
"""Of how answers are made: another number asks anew."""


def kept(
    cache: Cache,
    keys: Sequence[Mapping[str, Any]],
    sizes: Sequence[int],
    compute: Callable[[list[int], Tick], list[Arrays]],
    progress: Progress,
    name: str,
    together: int = TOGETHER,
) -> list[Arrays]:
    """One entry a key. Those that ``cache`` does not have are computed some at a time and kept at once; equal keys
    are computed once.

    ``together``: answers of a group, if single entries are smaller. ``compute`` is given places of ``keys``, and ticks each of the ``sizes`` answers or readings of an entry.
    """
    names = [key_digest(key) for key in keys]
    places = {digest: place for place, digest in reversed(list(enumerate(names)))}
    found: dict[str, Arrays] = {}
    missing: list[int] = []
    with progress(name, sum(sizes[place] for place in places.values())) as tick:
        for place in sorted(places.values()):
            entry = cache.find(keys[place])
            if entry is None:
                missing.append(place)
            else:
                found[names[place]] = entry
                tick(sizes[place], free=True)
        for group in _groups(missing, sizes, together):
            for place, entry in zip(group, compute(group, tick), strict=True):
                cache.keep(keys[place], entry)
                found[names[place]] = entry
    return [found[digest] for digest in names]


def _groups(places: Sequence[int], sizes: Sequence[int], most: int) -> list[list[int]]:
    groups: list[list[int]] = []
    rows = most
    for place in places:
        if not groups or rows + sizes[place] > most:
            groups.append([])
            rows = 0
        groups[-1].append(place)
        rows += sizes[place]
    return groups


def as_entry(value: Any) -> Arrays:
    """JSON-ready data as an entry of the cache."""
    return {"json": np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)}


def of_entry(entry: Arrays) -> Any:
    return json.loads(entry["json"].tobytes())


class Asker:
    """Asks ``backend``. ``model`` is the one in this process, whose answers stay in ``cache``; a server's model may
    change, and is asked again."""

    def __init__(
        self, backend: Backend, model: OpenedModel | None, cache: Cache, progress: Progress
    ) -> None:
        self.backend, self.progress = backend, progress
        self.cache = cache if model is not None else Cache(None)
        self.identity = identity(model, cache) if model is not None else {}

    def answers(
        self, settings: Sequence[Setting], questions: Sequence[str], max_tokens: int, name: str
    ) -> list[list[str]]:
        """Of every setting its answers to all ``questions``."""

        def compute(places: list[int], tick: Tick) -> list[Arrays]:
            speeches = [
                Speech(settings[place], question) for place in places for question in questions
            ]
            said = self.backend.speak(speeches, max_tokens, tick)
            count = len(questions)
            return [
                as_entry(said[place * count : (place + 1) * count]) for place in range(len(places))
            ]

        keys = [self._key("answers", one, questions, max_tokens) for one in settings]
        sizes = [len(questions)] * len(settings)
        return [
            of_entry(entry) for entry in kept(self.cache, keys, sizes, compute, self.progress, name)
        ]

    def conversations(
        self,
        settings: Sequence[Setting],
        scripts: Sequence[Sequence[str]],
        max_tokens: int,
        name: str,
    ) -> list[list[list[str]]]:
        """Of every setting, per script its answers turn by turn."""

        def compute(places: list[int], tick: Tick) -> list[Arrays]:
            pairs = [(settings[place], script) for place in places for script in scripts]
            said = self.backend.converse(
                [one for one, _ in pairs], [script for _, script in pairs], max_tokens, tick
            )
            count = len(scripts)
            return [
                as_entry(said[place * count : (place + 1) * count]) for place in range(len(places))
            ]

        keys = [
            self._key("conversations", one, [list(script) for script in scripts], max_tokens)
            for one in settings
        ]
        turns = sum(map(len, scripts))
        sizes = [turns] * len(settings)
        side_by_side = SIDE_BY_SIDE * turns // len(scripts)
        found = kept(self.cache, keys, sizes, compute, self.progress, name, together=side_by_side)
        return [of_entry(entry) for entry in found]

    def _key(
        self, what: str, setting: Setting, asked: Sequence[Any], max_tokens: int
    ) -> dict[str, Any]:
        return {
            "what": f"{what} {_VERSION}",
            "model": self.identity,
            "asked": list(asked),
            "max_tokens": max_tokens,
            **self.of_setting(setting),
        }

    @staticmethod
    def of_setting(setting: Setting) -> dict[str, Any]:
        """What an answer depends on of a setting."""
        return {
            "system": setting.system,
            "persona": setting.persona.digest if setting.persona else setting.persona_id,
            "strength": setting.strength,
            "scope": setting.scope,
        }


def identity(model: OpenedModel, cache: Cache) -> dict[str, Any]:
    """What the texts and readings of a model depend on."""
    content = checkpoint.digest(model, cache.folder) if cache.folder else ""
    return {"checkpoint": content, "dtype": model_dtype(model), "device": model.device.type}
