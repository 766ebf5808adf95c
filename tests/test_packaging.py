"""What a user installs: the wheel's contents, and commands whose extra is missing."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=ROOT,
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_two_packages_whole_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "vllm_palign",
        "palign_fit",
    }
    for source, package in (("vllm_palign", "vllm_palign"), ("tools/palign_fit", "palign_fit")):
        for path in (ROOT / source).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{package}/{path.relative_to(ROOT / source).as_posix()}" in names
    # What is no Python file is easily left behind.
    assert {"vllm_palign/py.typed", "palign_fit/py.typed", "palign_fit/data/inventory.csv"} <= names
    assert {"vllm_palign/registry/migrations/env.py", "vllm_palign/play/page.css"} <= names
    assert any(name.startswith("palign_fit/reporting/templates/") for name in names)


def test_the_wheel_announces_both_plugins_and_both_commands(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(name).decode()
    for line in (
        "[vllm.general_plugins]\npalign = vllm_palign.plugin:register",
        "[vllm.endpoint_plugins]\npalign = vllm_palign.endpoint:PalignEndpoint",
        "palign = vllm_palign.cli.__main__:main",
        "palign-fit = palign_fit.__main__:main",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("package", "extra"), [("palign_fit", "fit"), ("vllm_palign.cli", "service")]
)
def test_a_command_without_its_extra_names_it(package: str, extra: str) -> None:
    code = (
        "import sys; sys.modules['typer'] = None\n"  # as where it is not installed
        f"from {package}.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"typer is not installed; pip install 'vllm-palign[{extra}]'\n"
