"""Configured personas into the registry, at start."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

from vllm_palign.config import hub
from vllm_palign.errors import PalignError, PalignStartupError
from vllm_palign.persona import Persona, read_bytes
from vllm_palign.registry.records import metadata_of
from vllm_palign.registry.registry import Registry
from vllm_palign.shape import ModelShape, is_foreign, warn_foreign
from vllm_palign.tenants.tenant import Tenant

_logger = logging.getLogger("vllm.palign")
_AT_ONCE = 256
"""Most files per transaction, so that other servers' writes get their turn."""
_BYTES_AT_ONCE = 16 * 1024 * 1024
"""Bytes in memory after which a transaction begins."""

Item = tuple[str, Persona, bytes]


def import_personas(
    registry: Registry, shape: ModelShape, sources: Mapping[str, str], model: str
) -> None:
    """Register ``sources`` (name -> path or ``hf://`` URL) in the operator's namespace.

    Importing again changes nothing. A name that holds other bytes keeps them, with a warning: they were
    acknowledged to whoever registered them, and several servers may bring different files. Raises
    PalignStartupError naming every source that cannot be served.
    """
    problems: list[str] = []
    foreign: dict[str, str] = {}
    for chunk in _chunks(_load(sources, shape, problems)):
        foreign |= {
            name: persona.base_model for name, persona, _ in chunk if is_foreign(persona, model)
        }
        for kept in registry.add_missing(Tenant(), chunk):
            _logger.warning(
                "palign: persona %r stays as registered (digest %.12s); %s holds other bytes. PUT them "
                "with ?replace=true, or DELETE the persona and start again",
                kept.name,
                kept.digest,
                sources[kept.name],
            )
    if problems:
        raise PalignStartupError("personas cannot be served: " + "; ".join(problems))
    warn_foreign(foreign, model)
    _logger.info("palign: %d configured personas are registered", len(sources))


def _load(sources: Mapping[str, str], shape: ModelShape, problems: list[str]) -> Iterator[Item]:
    for name, source in sources.items():
        try:
            data = read_bytes(hub.download(source) if hub.is_hub(source) else source)
            persona = Persona.from_bytes(data, source=source)
            shape.check(persona, name)
            metadata_of(persona)
        except PalignError as error:
            problems.append(f"{name}={source}: {error.message}")
            continue
        yield name, persona, data


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item[2])
        if len(chunk) == _AT_ONCE or size > _BYTES_AT_ONCE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
