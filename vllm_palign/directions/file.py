"""The directions file: canonical safetensors with one JSON header, as a persona's."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm_palign.container import digest_of, header_problems, pack, read_bounded, unpack
from vllm_palign.directions.basis import Basis
from vllm_palign.directions.budget import Budget
from vllm_palign.directions.directions import FOLDS, PARTS, Directions
from vllm_palign.directions.inventory import COLUMNS, MAX_ITEMS, MAX_TEXT, Inventory, Item
from vllm_palign.directions.numbers import short
from vllm_palign.directions.record import ModelFacts
from vllm_palign.directions.traits import TRAITS
from vllm_palign.errors import DirectionsInvalid
from vllm_palign.persona import ID_PATTERN

FORMAT = "palign.directions"
FORMAT_VERSION = 1
_MAX_HEADER = 8 * 1024 * 1024
MAX_FILE_BYTES = 512 * 1024 * 1024
"""2,000 items on 24 heads of 128 take nearly half of it."""

_ARRAYS: dict[str, tuple[str, int]] = {
    "layers": ("I32", 1),
    "heads": ("I32", 1),
    "scores": ("F32", 1),
    "basis": ("F32", 3),
    "response": ("F32", 2),
    "quadratic": ("F32", 2),
    "covariance": ("F32", 3),
}
_TENSORS = {"folds": ("I32", 1)} | {
    f"{part}.{name}": kind for part in PARTS for name, kind in _ARRAYS.items()
}
_HEADER_FIELDS: dict[str, tuple[type, ...]] = {
    "base_model": (str,),
    "doses": (list,),
    "dtype": (str,),
    "followed": (dict,),
    "format": (str,),
    "format_version": (int,),
    "head_dim": (int,),
    "inventory": (dict,),
    "learned": (list,),
    "made_with": (str,),
    "num_heads": (int,),
    "num_layers": (int,),
    "order": (list,),
    "perplexity_plain": (int, float),
    "rate": (int, float),
    "reach": (int, float),
    "seed": (int,),
    "tool": (str,),
}


def is_directions(path: str | os.PathLike[str]) -> bool:
    """Whether the header of the file says that it holds directions; what is wrong with it is not looked at."""
    with suppress(OSError), Path(path).open("rb") as file:
        return f'\\"format\\":\\"{FORMAT}\\"'.encode() in file.read(_MAX_HEADER)
    return False


def load_directions(path: str | os.PathLike[str]) -> Directions:
    """Read and check a directions file. Raises DirectionsInvalid, naming the file."""
    data = read_bounded(Path(path), MAX_FILE_BYTES, DirectionsInvalid)
    return parse_directions(data, source=str(path))


def header(found: Directions) -> dict[str, Any]:
    """The metadata of the file."""
    return {
        "base_model": found.model.base_model,
        "doses": list(found.doses),
        "dtype": found.model.dtype,
        "followed": {
            trait: [None if math.isnan(value) else short(value) for value in row]
            for trait, row in zip(TRAITS, found.followed.tolist(), strict=True)
        },
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "head_dim": found.model.head_dim,
        "inventory": {
            "items": [list(row) for row in found.inventory.rows()],
            "name": found.inventory.name,
        },
        "learned": np.flatnonzero(found.whole.rows).tolist(),
        "made_with": found.made_with,
        "num_heads": found.model.num_heads,
        "num_layers": found.model.num_layers,
        "order": list(found.order),
        "perplexity_plain": found.budget.plain,
        "rate": found.budget.rate,
        "reach": found.reach,
        "seed": found.seed,
        "tool": found.tool,
    }


def to_bytes(found: Directions) -> bytes:
    """The canonical file: the same directions give the same bytes in every process."""
    tensors: dict[str, npt.NDArray[Any]] = {"folds": found.folds}
    for part, basis in found.parts.items():
        tensors |= {
            f"{part}.{name}": np.ascontiguousarray(getattr(basis, name)) for name in _ARRAYS
        }
    return pack(tensors, header(found))


def parse_directions(data: bytes, *, source: str = "directions file") -> Directions:
    """Parse and check the bytes of a file; ``source`` names it in errors.

    Raises DirectionsInvalid for everything the format does not allow.
    """
    if len(data) > MAX_FILE_BYTES:
        raise DirectionsInvalid(
            f"{source}: holds {len(data)} bytes, wanted at most {MAX_FILE_BYTES} (512 MiB)"
        )
    tensors, found = unpack(
        bytes(data),
        source,
        name=FORMAT,
        version=FORMAT_VERSION,
        wanted=_TENSORS,
        error=DirectionsInvalid,
        remedy="upgrade vllm-palign, or make the directions again with palign-fit directions",
    )
    problems = header_problems(found, _HEADER_FIELDS)
    if problems:
        raise DirectionsInvalid(f"{source}: " + "; ".join(problems))
    try:
        return _parsed(tensors, found, digest_of(data))
    except DirectionsInvalid as error:
        raise DirectionsInvalid(f"{source}: {error.message}") from None


def _parsed(
    tensors: Mapping[str, npt.NDArray[Any]], header: Mapping[str, Any], digest: str
) -> Directions:
    """Directions of the content of a file whose types are right. Raises DirectionsInvalid."""
    inventory = _inventory(header["inventory"])
    count = len(inventory.items)
    learned = np.zeros(count, bool)
    learned[_places("learned", header["learned"], count)] = True
    folds = tensors["folds"]
    if folds.shape != (count,) or ((folds < 0) | (folds >= FOLDS)).any():
        raise DirectionsInvalid(f"folds: wanted {count} numbers of 0 to {FOLDS - 1}")
    rows = {"whole": learned, "traits": np.zeros(count, bool)}
    rows |= {f"fold{fold}": learned & (folds != fold) for fold in range(FOLDS)}
    parts = {
        part: Basis(
            inventory=inventory,
            rows=rows[part],
            **{name: tensors[f"{part}.{name}"] for name in _ARRAYS},
        )
        for part in PARTS
    }
    plain, rate, reach = (
        _numbers(name, [header[name]])[0] for name in ("perplexity_plain", "rate", "reach")
    )
    doses = tuple(_numbers("doses", header["doses"]))
    followed = []
    for trait in TRAITS:
        row = header["followed"].get(trait)
        if not isinstance(row, list) or len(row) != len(doses):
            raise DirectionsInvalid(
                f"header field 'followed': wanted {len(doses)} numbers of {trait}"
            )
        followed.append(
            [math.nan if value is None else _numbers("followed", [value])[0] for value in row]
        )
    return Directions(
        model=ModelFacts(
            **{name.name: header[name.name] for name in fields(ModelFacts)},
        ),
        made_with=header["made_with"],
        whole=parts["whole"],
        blind=tuple(parts[f"fold{fold}"] for fold in range(FOLDS)),
        traits=parts["traits"],
        folds=folds,
        budget=Budget(plain, rate),
        reach=reach,
        doses=doses,
        followed=np.array(followed).reshape(len(TRAITS), len(doses)),
        order=tuple(_places("order", header["order"], count)),
        seed=header["seed"],
        tool=header["tool"],
        digest=digest,
    )


def _numbers(name: str, values: list[Any]) -> list[float]:
    if len(values) > MAX_ITEMS or not all(
        type(value) in (int, float) and abs(value) < 1e12 for value in values
    ):
        raise DirectionsInvalid(f"header field {name!r}: wanted a list of numbers")
    return [float(value) for value in values]


def _places(name: str, values: list[Any], count: int) -> list[int]:
    """Distinct places of ``count`` items."""
    right = all(type(value) is int and 0 <= value < count for value in values)
    if not right or len(set(values)) != len(values):
        raise DirectionsInvalid(
            f"header field {name!r}: wanted distinct numbers of 0 to {count - 1}"
        )
    return values


def _inventory(value: Mapping[str, Any]) -> Inventory:
    rows, name = value.get("items"), value.get("name")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_ITEMS or not isinstance(name, str):
        raise DirectionsInvalid(
            f"header field 'inventory': wanted a name and 1 to {MAX_ITEMS} items"
        )
    items = []
    for row in rows:
        cells = row if isinstance(row, list) else []
        if len(cells) != len(COLUMNS) or not all(
            isinstance(cell, str) and len(cell) <= MAX_TEXT for cell in cells
        ):
            raise DirectionsInvalid(
                f"header field 'inventory': item {str(row)[:60]} is not {', '.join(COLUMNS)}, texts of at "
                f"most {MAX_TEXT} characters"
            )
        identity, text, trait, facet, key = cells
        if (
            not ID_PATTERN.fullmatch(identity)
            or not text
            or not (text + facet).isprintable()
            or trait not in tuple(TRAITS)
            or key not in ("+", "-")
        ):
            raise DirectionsInvalid(f"header field 'inventory': item {str(row)[:60]} is none")
        items.append(Item(identity, text, trait, facet, 1 if key == "+" else -1))
    if len({item.id for item in items}) != len(items):
        raise DirectionsInvalid("header field 'inventory': an item's id is there twice")
    return Inventory(name[:MAX_TEXT], tuple(items))
