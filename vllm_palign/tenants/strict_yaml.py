"""YAML of people, taken literally: no tags, no aliases, no key twice, bounded depth."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from vllm_palign.errors import PalignError

_MAX_DEPTH = 20


class YamlError(PalignError):
    """Not YAML, or YAML that could be misread."""

    code = "palign_yaml"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or key in seen:
                problem = "is there twice" if isinstance(key, Hashable) else "cannot be a key"
                raise yaml.constructor.ConstructorError(
                    problem=f"{str(key)[:80]!r} {problem}", problem_mark=key_node.start_mark
                )
            seen.add(key)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def load(data: bytes) -> Any:
    """The one document in ``data``. Raises YamlError."""
    try:
        _check_events(data)
        return yaml.load(data, Loader=_Loader)
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        raise YamlError(f"not usable YAML: {' '.join(str(error).split())}") from None


def _check_events(data: bytes) -> None:
    depth = 0
    for event in yaml.parse(data, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            # A few nested aliases stand for billions of values.
            raise ValueError(f"aliases are not taken (*{event.anchor}); write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
