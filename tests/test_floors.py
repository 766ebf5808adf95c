"""Imports run downhill: a room takes only from the floors below it, whatever the import is written inside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

SERVING = (
    ("errors", "files", "metrics"),
    ("container", "switch", "compat"),
    ("persona",),
    ("directions", "effect", "config", "tenants"),
    ("shape", "selection"),
    ("registry", "worker"),
    ("admission", "verify"),
    ("server", "cli"),
    ("endpoint",),
    ("plugin",),
)
"""Rooms of ``vllm_palign`` from the ground up. Rooms of one floor do not know each other."""

FITTING = (
    ("errors", "arrays", "progress"),
    ("inputs",),
    ("model",),
    ("methods",),
    ("fit",),
    ("output",),
    ("evaluation",),
    ("reporting",),
    ("commands",),
    ("cli",),
)

SHARED = {
    "vllm_palign.errors",
    "vllm_palign.files",
    "vllm_palign.container",
    "vllm_palign.persona",
    "vllm_palign.directions",
    "vllm_palign.cli.extras",
}
"""All that ``palign_fit`` takes from the serving side; nothing goes the other way."""


def imports(package: Path) -> Iterator[tuple[Path, str]]:
    """(file, module it imports) for every import of our own packages, lazy ones too."""
    for file in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.level, f"{file}: a relative import hides which room it takes from"
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                modules = [name for name in names if is_module(package.parent, name)]
                yield from ((file, module) for module in modules[1:] or [node.module])
            elif isinstance(node, ast.Import):
                yield from ((file, alias.name) for alias in node.names)


def is_module(folder: Path, name: str) -> bool:
    path = folder / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize(
    ("folder", "floors"), [("vllm_palign", SERVING), ("tools/palign_fit", FITTING)]
)
def test_a_room_takes_only_from_the_floors_below(
    folder: str, floors: tuple[tuple[str, ...], ...]
) -> None:
    package = ROOT / folder
    floor_of = {room: floor for floor, rooms in enumerate(floors) for room in rooms}
    rooms = {
        path.stem
        for path in package.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__", "__main__"} == set(floor_of), "a room that stands on no floor"
    wrong = set()
    for file, module in imports(package):
        if not module.startswith(f"{package.name}."):
            continue
        here = file.relative_to(package).parts[0].removesuffix(".py")
        there = module.split(".")[1]
        if here in floor_of and here != there and floor_of[here] <= floor_of[there]:
            wrong.add(f"{file.relative_to(package)} imports {module}")
    assert not wrong


@pytest.mark.parametrize("folder", ["vllm_palign", "tools/palign_fit"])
def test_modules_inside_a_room_import_one_another_in_no_circle(folder: str) -> None:
    package = ROOT / folder
    takes: dict[str, set[str]] = {}
    for file, module in imports(package):
        parts = file.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if is_module(package.parent, module) and module != name:
            takes.setdefault(name, set()).add(module)
    modules = dict(takes)
    while free := [name for name, taken in modules.items() if not taken & modules.keys()]:
        for name in free:
            del modules[name]
    assert not modules, f"a circle among {sorted(modules)}"


def test_fitting_takes_file_formats_and_directions_from_serving_and_serving_nothing_from_fitting() -> (
    None
):
    fitting = {
        module
        for _, module in imports(ROOT / "tools/palign_fit")
        if module.startswith("vllm_palign")
    }
    assert {m for m in fitting if not m.startswith("vllm_palign.directions.")} <= SHARED
    assert not [m for _, m in imports(ROOT / "vllm_palign") if m.startswith("palign_fit")]
