from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from palign_fit.model import checkpoint
from palign_fit.model.cache import Arrays, Cache, default_folder, key_digest
from palign_fit.model.model import wrap


class Work:
    """Counts how often it is done."""

    def __init__(self, seed: int = 0, size: int = 100) -> None:
        self.times, self.seed, self.size = 0, seed, size

    def __call__(self) -> Arrays:
        self.times += 1
        rng = np.random.default_rng(self.seed)
        return {
            "a": rng.normal(size=(self.size, 3)).astype(np.float32),
            "b": np.arange(4),
            "c": np.float64(self.seed).reshape(()),
            "none": np.zeros((0, 2), np.uint8),
        }


def same(one: Arrays, other: Arrays) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name])
        for name in one
    )


def test_what_was_computed_once_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    work = Work()
    key = {"model": "abc", "texts": ["x", "y"]}
    first = Cache(tmp_path / "c").load_or_compute(key, work)
    again = Cache(tmp_path / "c").load_or_compute(dict(reversed(key.items())), work)
    assert work.times == 1 and same(first, again) and same(first, Work()())
    Cache(tmp_path / "c").load_or_compute({**key, "model": "abd"}, work)
    assert work.times == 2
    Cache(None).load_or_compute(key, work)
    assert work.times == 3
    assert not list((tmp_path / "c").glob(".*"))


@pytest.mark.parametrize("where", [0, 4, 40, -1])
def test_a_broken_entry_is_computed_again_and_said_so(where: int, tmp_path: Path) -> None:
    work, cache = Work(), Cache(tmp_path)
    cache.load_or_compute({"k": 1}, work)
    (entry,) = tmp_path.iterdir()
    data = bytearray(entry.read_bytes())
    data[where] ^= 1
    for broken in (bytes(data), bytes(data[:20]), b""):
        entry.write_bytes(broken)
        with pytest.warns(UserWarning, match="is broken"):
            assert same(cache.load_or_compute({"k": 1}, work), Work()())
        assert same(cache.load_or_compute({"k": 1}, work), Work()())
    assert work.times == 4


def test_the_entries_used_longest_ago_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, max_bytes=12_000)
    works = [Work(seed, size=250) for seed in range(4)]  # 3 kB each
    for seed in range(3):
        cache.load_or_compute({"k": seed}, works[seed])
        os.utime(tmp_path / f"{key_digest({'k': seed})}.safetensors", (seed, seed))
    cache.load_or_compute({"k": 0}, works[0])  # used now
    cache.load_or_compute({"k": 3}, works[3])
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) <= 12_000
    for seed in (0, 3, 1):
        cache.load_or_compute({"k": seed}, works[seed])
    assert [work.times for work in works] == [1, 2, 1, 1]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be used|is broken"):
        found = Cache(tmp_path / "file" / "c").load_or_compute({"k": 1}, Work())
    assert same(found, Work()())


def test_a_key_that_is_no_json_is_a_mistake() -> None:
    for key in ({"k": np.float32(1)}, {"k": {1}}):
        with pytest.raises(TypeError):
            key_digest(key)
    with pytest.raises(ValueError, match="JSON"):
        key_digest({"k": float("nan")})


def test_the_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "palign-fit"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_folder() == Path.home() / ".cache" / "palign-fit"


def test_a_checkpoint_is_known_by_its_content(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from palign_fit.model.model import open_model

    def digest(folder: Path, memory: Path | None = None) -> str:
        return checkpoint.digest(open_model(str(folder), device="cpu"), memory)

    first = digest(tiny_checkpoint, tmp_path / "c")
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "elsewhere"))
    assert digest(copy) == first
    # What is remembered is not read again, and a change of the file is seen.
    hashed: list[Any] = []
    real = checkpoint.file_digest
    monkeypatch.setattr(
        checkpoint, "file_digest", lambda *given: hashed.append(given) or real(*given)
    )
    assert digest(tiny_checkpoint, tmp_path / "c") == first and not hashed
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert digest(copy) != first
    shutil.copy(tiny_checkpoint / "model.safetensors", weights)
    (copy / "README.md").write_text("words")
    assert digest(copy) == first
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert digest(copy) != first


def test_a_model_without_files_is_known_by_its_weights(tiny: Any) -> None:
    import torch

    model = wrap(copy.deepcopy(tiny.model), tiny.tokenizer, base_model="tiny")
    model.model.name_or_path = ""
    first = checkpoint.digest(model, None)
    assert checkpoint.digest(model, None) == first
    with torch.no_grad():
        model.projections[0].weight[0, 0] += 1
    assert checkpoint.digest(model, None) != first
