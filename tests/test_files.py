"""Writing a file in one step."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from vllm_palign import files
from vllm_palign.files import replacing, write_bytes


def test_a_file_is_the_old_one_until_it_is_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "alice"
    target.write_bytes(b"old")
    with replacing(target) as part:
        part.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_what_fails_on_the_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "alice"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(target) as part:
        part.write_bytes(b"ne")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_content_is_on_the_disk_before_the_name_is_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, order = tmp_path / "alice", []
    sync = files._sync
    monkeypatch.setattr(
        files, "_sync", lambda path: (order.append((path.is_dir(), target.exists())), sync(path))
    )
    write_bytes(target, b"new")
    assert order == [(False, False), (True, True)]


def test_a_file_with_a_mode_is_never_open_to_others_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "keys"
    with replacing(target, mode=0o644) as part:
        part.write_bytes(b"secret")
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_a_folder_that_is_not_there_is_an_error_naming_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_bytes(tmp_path / "nowhere/alice", b"")
