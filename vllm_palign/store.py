"""The personas a front end can resolve: name -> digest -> content."""

from __future__ import annotations

from vllm_palign.errors import PersonaNotFound
from vllm_palign.persona import Persona
from vllm_palign.shape import ModelShape
from vllm_palign.stamp import Stamp
from vllm_palign.wire import Resolved, Selection, check_strength


class PersonaStore:
    """In memory, filled at start, one per front-end process. Names are served names, which need not
    be the ``name`` inside the file."""

    def __init__(self, shape: ModelShape, max_strength: float) -> None:
        self.shape = shape
        self.max_strength = max_strength
        self._by_name: dict[str, Persona] = {}
        self._by_digest: dict[str, Persona] = {}

    def add(self, name: str, persona: Persona) -> None:
        """Raises PersonaIncompatible when ``persona`` does not fit the served model."""
        self.shape.check(persona, name)
        self._by_name[name] = persona
        self._by_digest[persona.digest] = persona

    @property
    def names(self) -> list[str]:
        return sorted(self._by_name)

    def get(self, name: str, *, param: str = "persona") -> Persona:
        """Raises PersonaNotFound."""
        try:
            return self._by_name[name]
        except KeyError:
            raise PersonaNotFound(
                f"there is no persona {name!r} on this server", param=param
            ) from None

    def resolve(self, selection: Selection) -> Resolved:
        """Names to content. Raises PersonaInvalid (too strong) or PersonaNotFound."""
        check_strength(selection, self.max_strength)
        scales: dict[str, float] = {}
        for name, weight in selection.parts:
            digest = self.get(name).digest
            scales[digest] = scales.get(digest, 0.0) + weight * selection.strength
        return Resolved(tuple(sorted(item for item in scales.items() if item[1] != 0.0)))

    def stamp(self, resolved: Resolved) -> Stamp | None:
        """Effective offsets, or None when nothing is left to add (strength 0).

        Raises PersonaNotFound or PersonaIncompatible.
        """
        if not resolved.parts:
            return None
        missing = [digest for digest, _ in resolved.parts if digest not in self._by_digest]
        if missing:
            raise PersonaNotFound(f"there is no persona with digest {missing[0]} on this server")
        stamp = Stamp.compose(
            [(self._by_digest[digest], scale) for digest, scale in resolved.parts]
        )
        self.shape.check_range(stamp)
        return stamp
