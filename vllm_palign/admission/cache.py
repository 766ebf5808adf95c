"""Personas in host memory, by digest, and what they amount to at a strength."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Set
from concurrent.futures import Future
from dataclasses import replace

from vllm_palign import metrics
from vllm_palign.effect import Effect
from vllm_palign.errors import PersonaNotFound, RegistryUnavailable
from vllm_palign.persona import Persona

_OVERHEAD = 2048
"""Bytes that the objects around the arrays take, rounded up."""


class PersonaCache:
    """Least recently used first out, bounded by bytes. Content never changes under a digest, so nothing
    is ever stale. Safe to use from several threads; a missing digest is fetched by one of them while
    the others wait for it."""

    def __init__(self, most_bytes: int, fetch: Callable[[str], bytes]) -> None:
        """``fetch`` gives the verified bytes of a digest, or raises a PalignError."""
        self.most_bytes = most_bytes
        self._fetch = fetch
        self._held: OrderedDict[str, Persona] = OrderedDict()
        self._bytes = 0
        self._coming: dict[str, Future[Persona]] = {}
        self._unwanted: set[str] = set()
        """Digests that were dropped while they came."""
        self._lock = threading.Lock()

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    @property
    def held_bytes(self) -> int:
        return self._bytes

    def get(self, digest: str) -> Persona:
        """The content of ``digest``, without its texts: serving does not need them, and they may be long.

        Raises what ``fetch`` raises, for everybody who waits.
        """
        began = time.perf_counter()
        with self._lock:
            persona = self._held.get(digest)
            if persona is not None:
                self._held.move_to_end(digest)
                metrics.fetched("cache", "ok", time.perf_counter() - began)
                return persona
            mine = digest not in self._coming
            coming = self._coming.setdefault(digest, Future())
        if mine:
            self._fill(digest, coming)
            metrics.fetched("store", _outcome(coming), time.perf_counter() - began)
        return coming.result()

    def held(self) -> set[str]:
        """The digests in memory."""
        with self._lock:
            return set(self._held)

    def drop(self, digests: Set[str]) -> None:
        """Forget the content of ``digests``."""
        with self._lock:
            self._unwanted |= digests & self._coming.keys()
            for digest in digests & self._held.keys():
                self._bytes -= _size(self._held.pop(digest))
            metrics.host_cache(size=self._bytes, personas=len(self._held))

    def _fill(self, digest: str, coming: Future[Persona]) -> None:
        try:
            whole = Persona.from_bytes(self._fetch(digest), source=f"digest {digest}")
            most = whole.max_strength
            persona = replace(
                whole,
                name="",
                base_model="",
                method="",
                description="",
                fit={} if most is None else {"max_strength": most},
            )
        except BaseException as error:
            with self._lock:
                self._came(digest)
            coming.set_exception(error)
            return
        with self._lock:
            if self._came(digest):
                self._keep(persona)
        coming.set_result(persona)

    def _came(self, digest: str) -> bool:
        """Whether it is wanted still."""
        del self._coming[digest]
        wanted = digest not in self._unwanted
        self._unwanted.discard(digest)
        return wanted

    def _keep(self, persona: Persona) -> None:
        self._held[persona.digest] = persona
        self._bytes += _size(persona)
        while self._bytes > self.most_bytes:
            _, gone = self._held.popitem(last=False)
            self._bytes -= _size(gone)
        metrics.host_cache(size=self._bytes, personas=len(self._held))


class EffectCache:
    """Effects of single personas by (digest, scale), least recently used first out, bounded by bytes. A persona
    is mostly asked for at one strength, and to add up and hash its offsets takes longer than all else of its
    request's admission. Safe to use from several threads."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._held: OrderedDict[tuple[str, float], Effect] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, digest: str, scale: float) -> Effect | None:
        with self._lock:
            effect = self._held.get((digest, scale))
            if effect is not None:
                self._held.move_to_end((digest, scale))
            return effect

    def put(self, digest: str, scale: float, effect: Effect) -> None:
        with self._lock:
            if (digest, scale) in self._held:
                return  # two requests at once
            self._held[digest, scale] = effect
            self._bytes += _size(effect)
            while self._bytes > self.most_bytes:
                _, gone = self._held.popitem(last=False)
                self._bytes -= _size(gone)

    def held(self) -> set[str]:
        """The digests in memory, at whatever scale."""
        with self._lock:
            return {digest for digest, _ in self._held}

    def drop(self, digests: Set[str]) -> None:
        """Forget the effects of ``digests``."""
        with self._lock:
            for key in [key for key in self._held if key[0] in digests]:
                self._bytes -= _size(self._held.pop(key))


def _size(content: Persona | Effect) -> int:
    return content.layers.nbytes + content.heads.nbytes + content.offsets.nbytes + _OVERHEAD


def _outcome(future: Future[Persona]) -> metrics.Outcome:
    error = future.exception()
    if error is None:
        return "ok"
    if isinstance(error, PersonaNotFound):
        return "missing"
    if isinstance(error, RegistryUnavailable):
        return "unavailable"
    return "corrupt"
