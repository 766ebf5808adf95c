"""The directions file: the same content, the same bytes; whatever is wrong with one is refused by name."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.directions import tiny_directions
from vllm_palign.directions import (
    Directions,
    is_directions,
    load_directions,
    parse_directions,
    to_bytes,
)
from vllm_palign.directions.file import MAX_FILE_BYTES, header
from vllm_palign.errors import DirectionsInvalid

MADE = tiny_directions(3, 4, 8)


def tensors() -> dict[str, np.ndarray[Any, Any]]:
    return safetensors.numpy.load(to_bytes(MADE))


def rebuilt(arrays: dict[str, Any], head: dict[str, Any]) -> bytes:
    return safetensors.numpy.save(arrays, metadata={"palign": json.dumps(head)})


def with_tensor(name: str, value: np.ndarray[Any, Any] | None) -> bytes:
    arrays = tensors()
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value
    return rebuilt(arrays, header(MADE))


def with_field(**fields: Any) -> bytes:
    return rebuilt(tensors(), header(MADE) | fields)


def with_item(place: int, value: Any) -> bytes:
    items = [list(row) for row in header(MADE)["inventory"]["items"]]
    items[0][place] = value
    return with_field(inventory={"name": "x", "items": items})


def changed(name: str, at: tuple[int, ...], value: float) -> Callable[[], bytes]:
    def build() -> bytes:
        array = tensors()[name].copy()
        array[at] = value
        return with_tensor(name, array)

    return build


def test_a_file_read_is_the_file_written(tmp_path: Path) -> None:
    data = to_bytes(MADE)
    path = tmp_path / "d.safetensors"
    path.write_bytes(data)
    read = load_directions(path)
    assert to_bytes(read) == data and read.digest == MADE.digest
    given = {f"q{n}": 1 + n % 5 for n in range(1, 41)}
    assert read.from_answers("a", given).to_bytes() == MADE.from_answers("a", given).to_bytes()
    assert is_directions(path) and not is_directions(tmp_path / "none")
    path.write_bytes(MADE.from_answers("a", given).to_bytes())
    assert not is_directions(path)
    with pytest.raises(
        DirectionsInvalid, match=r"format is 'palign.persona', wanted 'palign.directions'"
    ):
        load_directions(path)


REFUSED: list[tuple[str, Callable[[], bytes], str]] = [
    ("empty", lambda: b"", "not a safetensors file"),
    ("cut", lambda: to_bytes(MADE)[:-9], "not a safetensors file"),
    ("a pickle", lambda: pickle.dumps({"basis": 1}), "a pickle"),
    ("a web page", lambda: b"<!doctype html><html>", "a web page"),
    ("no tensor", lambda: with_tensor("fold1.basis", None), "tensors are"),
    ("one more", lambda: with_tensor("more", np.zeros(1, np.float32)), "tensors are"),
    (
        "float64",
        lambda: with_tensor("whole.basis", tensors()["whole.basis"].astype(np.float64)),
        "is F64",
    ),
    ("rank", lambda: with_tensor("folds", np.zeros((40, 1), np.int32)), "of rank 1"),
    ("few folds", lambda: with_tensor("folds", np.zeros(39, np.int32)), "folds: wanted 40 numbers"),
    ("fold 3", changed("folds", (0,), 3), "folds: wanted 40 numbers of 0 to 2"),
    ("NaN", changed("whole.basis", (0, 0, 0), np.nan), "whole: basis holds NaN"),
    ("inf", changed("fold2.response", (0, 0), np.inf), "fold2: response holds NaN or Inf"),
    ("layer", changed("whole.layers", (3,), 3), "layers holds 3, wanted 0 to 2"),
    ("head", changed("traits.heads", (0,), -1), "heads holds -1, wanted 0 to 3"),
    (
        "wide",
        lambda: with_tensor("whole.covariance", np.zeros((4, 8, 9), np.float32)),
        "covariance is",
    ),
    ("version", lambda: with_field(format_version=2), "this release reads 1"),
    (
        "a field less",
        lambda: rebuilt(tensors(), {k: v for k, v in header(MADE).items() if k != "rate"}),
        "'rate' is missing",
    ),
    ("a wrong type", lambda: with_field(seed="0"), "'seed' is str '0', wanted int"),
    ("a boolean", lambda: with_field(reach=True), "'reach' is bool"),
    ("reach", lambda: with_field(reach=0), "reach is 0.0, wanted more than 0"),
    ("plain", lambda: with_field(perplexity_plain=-1.0), "perplexity_plain"),
    ("rate", lambda: with_field(rate=-1), "rate is -1.0, wanted 0 or more"),
    ("huge rate", lambda: with_field(rate=10**400), "'rate': wanted a list of numbers"),
    ("huge shape", lambda: with_field(num_heads=10**30), "num_heads is 10+, wanted 1 to"),
    (
        "no doses",
        lambda: with_field(doses=[], followed={t: [] for t in "OCEAN"}),
        "wanted one of the doses",
    ),
    ("another dose", lambda: with_field(reach=0.3), "reach is 0.3, wanted one of the doses"),
    ("variance", changed("whole.covariance", (0, 0, 0), -1), "whole: covariance holds negative"),
    ("order", lambda: with_field(order=[0, 0]), "'order': wanted distinct numbers"),
    (
        "order outside",
        lambda: with_field(order=[40]),
        "'order': wanted distinct numbers of 0 to 39",
    ),
    ("order text", lambda: with_field(order=["0"]), "'order': wanted distinct"),
    ("learned", lambda: with_field(learned=[0.5]), "'learned': wanted distinct"),
    ("followed", lambda: with_field(followed={"O": [1, 1]}), "'followed': wanted 2 numbers of C"),
    (
        "followed text",
        lambda: with_field(followed={t: ["x", 1] for t in "OCEAN"}),
        "list of numbers",
    ),
    ("no items", lambda: with_field(inventory={"name": "x", "items": []}), "1 to 2000 items"),
    ("items", lambda: with_field(inventory={"name": "x", "items": [["q1"]]}), "is not id, text"),
    ("an id", lambda: with_item(0, "../x"), "item"),
    ("twice", lambda: with_item(0, "q2"), "there twice"),
    ("long", lambda: with_item(1, "x" * 301), "at most 300"),
    ("control", lambda: with_item(1, "x\x1b[2J"), "item"),
    ("trait", lambda: with_item(2, "OC"), "item"),
    ("key", lambda: with_item(4, "x"), "item"),
    ("a number", lambda: with_item(1, 3), "is not id, text"),
    ("negative heads", lambda: with_field(num_heads=0), "num_heads is 0"),
]


@pytest.mark.parametrize(
    ("build", "message"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_what_the_format_does_not_allow_is_refused_by_name(
    build: Callable[[], bytes], message: str
) -> None:
    with pytest.raises(DirectionsInvalid, match=message) as raised:
        parse_directions(build(), source="d.safetensors")
    assert raised.value.message.startswith("d.safetensors: ")
    assert len(raised.value.message) < 3000


def test_a_file_that_cannot_be_read_or_is_too_large(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(DirectionsInvalid, match="cannot be read"):
        load_directions(tmp_path / "none")
    monkeypatch.setattr("vllm_palign.directions.file.MAX_FILE_BYTES", 10)
    with pytest.raises(DirectionsInvalid, match="wanted at most 10"):
        parse_directions(b"x" * 11)
    assert MAX_FILE_BYTES > 10


def test_random_damage_never_ends_in_another_error() -> None:
    data = bytearray(to_bytes(MADE))
    rng = np.random.default_rng(0)
    size = int.from_bytes(data[:8], "little")
    for _ in range(300):
        hurt = bytearray(data)
        for at in rng.integers(0, size + 8, 3):
            hurt[at] = int(rng.integers(256))
        try:
            found = parse_directions(bytes(hurt))
        except DirectionsInvalid:
            continue
        assert isinstance(found, Directions)


def test_a_person_is_the_same_before_and_after_the_file() -> None:
    """Whatever digits the measured table has."""
    table = np.array(
        [[1 / 3, 1 / 7], [0.123456789, 0.2], [0.31028465, 0.3], [2 / 3, 0.1], [0.5, 0.4]]
    )
    made = dataclasses.replace(MADE, followed=table, digest="")
    read = parse_directions(to_bytes(made))
    for count in range(6, 41):
        given = {f"q{n}": 1 + n % 5 for n in range(1, count + 1)}
        assert made.from_answers("a", given).to_bytes() == read.from_answers("a", given).to_bytes()


def test_where_nothing_was_measured_nothing_is_expected() -> None:
    made = dataclasses.replace(MADE, followed=np.full((5, 2), np.nan), digest="")
    one = parse_directions(to_bytes(made)).from_answers(
        "a", {f"q{n}": 1 + n % 5 for n in range(1, 41)}
    )
    assert "expected_alignment" not in one.fit
