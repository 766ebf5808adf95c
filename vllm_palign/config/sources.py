"""What ``--palign-personas`` and ``--palign-directions`` name: files, folders, and repositories of the
Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from vllm_palign.config import hub
from vllm_palign.errors import PalignError, PalignStartupError
from vllm_palign.persona import SUFFIX, is_persona_id


def parse_personas(values: list[str]) -> dict[str, str]:
    """``NAME=SOURCE``, ``FILE``, ``DIR`` and ``hf://owner/repo`` arguments to name -> source. A file that is
    given no name, and each of a DIR or repository, is served under its own; what comes from Hugging Face is
    pinned to the commit it has now.

    Raises PalignStartupError, naming every argument that is none of these.
    """
    personas: dict[str, str] = {}
    problems = []
    for value in values:
        try:
            found = _sources(value)
        except PalignError as error:
            problems.append(error.message)
            continue
        problems += [f"{value}: {name!r} is named twice" for name in found if name in personas]
        personas.update(found)
    if problems:
        raise PalignStartupError("--palign-personas: " + "; ".join(problems))
    return personas


def parse_directions(value: str) -> str:
    """``FILE`` as it is, ``hf://owner/repo[@revision][/file]`` with the commit it has now. Raises PalignStartupError."""
    try:
        return hub.pin(value) if hub.is_hub(value) else value
    except PalignStartupError as error:
        raise PalignStartupError(f"--palign-directions: {error.message}") from None


def _sources(value: str) -> dict[str, str]:
    name, equals, source = value.partition("=")
    if equals and is_persona_id(name):
        return {name: hub.pin(source) if hub.is_hub(source) else source}
    if hub.is_hub(value):
        return {_name(file, source): source for file, source in hub.contents(value).items()}
    path = Path(value)
    if path.is_file():
        return {_name(path.name, value): value}
    if not path.is_dir():
        raise PalignStartupError(
            f"{value}: neither NAME=PATH nor an existing file or folder nor hf://owner/repo"
        )
    # What begins with a dot is hidden from people: copies that macOS makes (._alice.safetensors), unfinished files.
    files = [file for file in sorted(path.glob(f"*{SUFFIX}")) if not file.name.startswith(".")]
    if not files:
        raise PalignStartupError(f"{value}: no {SUFFIX} files in this folder")
    return {_name(file.name, str(file)): str(file) for file in files}


def _name(file: str, source: str) -> str:
    """The name of a file's persona. Raises PalignStartupError, naming ``source``, where it can be none."""
    name = file.removesuffix(SUFFIX)
    if not is_persona_id(name):
        raise PalignStartupError(
            f"{source}: {name!r} cannot name a persona, wanted 1 to 128 of A-Z a-z 0-9 . _ -, beginning with a "
            "letter or digit; rename the file, or name it: NAME=PATH"
        )
    return name
