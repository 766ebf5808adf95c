"""The personas a front end can resolve: names to digests to content to effective offsets."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Set
from dataclasses import dataclass

from vllm_palign.admission.cache import EffectCache, PersonaCache
from vllm_palign.admission.outage import Outage
from vllm_palign.config.config import SCOPE
from vllm_palign.effect import Effect
from vllm_palign.errors import PersonaNotFound, RegistryUnavailable
from vllm_palign.persona import Persona, Scope
from vllm_palign.registry import Registry
from vllm_palign.registry.registry import not_found
from vllm_palign.selection import Selection, check_own_strength, check_strength
from vllm_palign.shape import ModelShape
from vllm_palign.tenants.tenant import OPERATOR, Tenant

_EFFECTS_SHARE = 4
"""A quarter of the cache is for effects: they are as large as their personas, and fewer are asked for."""
_TRIES = 5
"""Looks at a name that is replaced all the time before it counts as gone."""
_MOST_KNOWN = 65_536
"""Names remembered for the time of an outage; some 200 bytes each."""


@dataclass(frozen=True)
class Chosen:
    """What a selection amounts to. ``selection`` names its scope. ``digests`` and ``owners`` by persona name; ``effect`` is None when
    nothing is left to add (strength 0)."""

    selection: Selection
    digests: dict[str, str]
    owners: dict[str, str]
    effect: Effect | None

    @property
    def scope(self) -> Scope:
        assert self.selection.scope is not None
        return self.selection.scope


class Resolver:
    """One per front-end process, over a registry that others may share. Its methods may block: HTTP
    front ends call them from a thread pool.

    Names are looked up in the registry for every request, so that a change made anywhere counts at once.
    While the registry is down (``outage``), names this process has resolved before keep their last digest.
    """

    def __init__(
        self,
        registry: Registry,
        shape: ModelShape,
        *,
        max_strength: float,
        cache_bytes: int,
        scope: Scope = SCOPE,
    ) -> None:
        """``scope`` is that of requests that name none."""
        self.registry = registry
        self.shape = shape
        self.max_strength = max_strength
        self.scope: Scope = scope
        self.cache = PersonaCache(cache_bytes - cache_bytes // _EFFECTS_SHARE, registry.blob)
        self._effects = EffectCache(cache_bytes // _EFFECTS_SHARE)
        self._known: OrderedDict[tuple[str, str], tuple[str, str]] = OrderedDict()
        self._changes = 0
        """Of names, made through this process: what was looked up before one is not remembered after it."""
        self._lock = threading.Lock()
        self.outage = Outage(registry)

    def resolve(self, selection: Selection, tenant: Tenant) -> Chosen:
        """Raises PersonaInvalid (too strong), PersonaNotFound, PersonaIncompatible, RegistryUnavailable
        or PersonaCorrupt."""
        check_strength(selection, tenant.strength_bound(self.max_strength))
        names = [name for name, _ in selection.parts]
        found, contents = self._look_up(tenant, names)
        check_own_strength(selection, contents)
        scales: dict[str, float] = {}
        for name, weight in selection.parts:
            digest = contents[name].digest
            scales[digest] = scales.get(digest, 0.0) + weight * selection.strength
        for name in names:
            self.shape.check(contents[name], name)
        by_digest = {persona.digest: persona for persona in contents.values()}
        parts = [(by_digest[digest], scale) for digest, scale in scales.items() if scale != 0.0]
        return Chosen(
            selection=selection.with_default(self.scope),
            digests={name: digest for name, (_, digest) in found.items()},
            owners={name: owner for name, (owner, _) in found.items()},
            effect=self._compose(parts) if parts else None,
        )

    def held(self) -> set[str]:
        """Digests of all persona content that this process remembers."""
        return self.cache.held() | self._effects.held()

    def forget(self, digests: Set[str]) -> None:
        """Drop the content of ``digests`` and the names that had it. Running requests keep their own."""
        if not digests:
            return
        self.cache.drop(digests)
        self._effects.drop(digests)
        with self._lock:
            self._changes += 1
            for name in [name for name, (_, digest) in self._known.items() if digest in digests]:
                del self._known[name]

    def changed(self, owner: str, name: str, *, replaced: bool) -> None:
        """``owner`` has registered other content as ``name``: an outage that begins now must not bring back what
        the name meant before, to the owner or to whom it is shared with."""
        with self._lock:
            self._changes += 1
            self._known.pop((owner, name), None)
            # Only the operator lends, and what is new nobody was lent: no PUT of a tenant looks through all names.
            if owner == OPERATOR and replaced:
                for key in [
                    key
                    for key, (held, _) in self._known.items()
                    if key[1] == name and held == owner
                ]:
                    del self._known[key]

    def _compose(self, parts: list[tuple[Persona, float]]) -> Effect:
        """Raises PersonaIncompatible for offsets beyond the model's dtype."""
        single = (parts[0][0].digest, parts[0][1]) if len(parts) == 1 else None
        effect = self._effects.get(*single) if single else None
        if effect is None:
            effect = Effect.compose(parts)
            self.shape.check_range(effect)
            if single:
                self._effects.put(*single, effect)
                if single[0] not in self.cache:  # forgotten meanwhile: it must not come back so
                    self._effects.drop({single[0]})
        return effect

    def _look_up(
        self, tenant: Tenant, names: list[str]
    ) -> tuple[dict[str, tuple[str, str]], dict[str, Persona]]:
        """Owner and digest of each name, and its content. Replaced or deleted between the two look-ups, the
        newer answer counts."""
        tries = 0
        while True:
            found = self._digests(tenant, names)
            try:
                return found, {name: self.cache.get(digest) for name, (_, digest) in found.items()}
            except PersonaNotFound:
                tries += 1
                if tries == _TRIES:
                    raise

    def _digests(self, tenant: Tenant, names: list[str]) -> dict[str, tuple[str, str]]:
        """Name -> (owner, digest). Raises PersonaNotFound for the first name that is not visible."""
        if self.outage:
            return self._remembered(tenant, names)
        changes = self._changes
        try:
            records = self.registry.lookup(tenant, names)
        except RegistryUnavailable as error:
            self.outage.begin(error)
            return self._remembered(tenant, names)
        found = {name: (record.tenant, record.digest) for name, record in records.items()}
        with self._lock:
            for name in names:
                key = tenant.name, name
                known = self._known.pop(key, None)
                if name in found and (changes == self._changes or known == found[name]):
                    self._known[key] = found[name]
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        for name in names:
            if name not in found:
                raise not_found(name)
        return found

    def _remembered(self, tenant: Tenant, names: list[str]) -> dict[str, tuple[str, str]]:
        with self._lock:
            found = {name: self._known.get((tenant.name, name)) for name in names}
        for name, known in found.items():
            if known is None or not tenant.sees(known[0], name) or known[1] not in self.cache:
                raise RegistryUnavailable(
                    f"the persona registry does not answer, and persona {name!r} is not in this "
                    "server's memory; try again",
                    param="persona",
                )
        return {name: known for name, known in found.items() if known is not None}
