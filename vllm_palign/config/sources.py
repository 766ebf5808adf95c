"""What ``--palign-personas`` names: files, folders, and repositories of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from vllm_palign.config import hub
from vllm_palign.errors import PalignError, PalignStartupError
from vllm_palign.persona import SUFFIX, is_persona_id


def parse_personas(values: list[str]) -> dict[str, str]:
    """``NAME=SOURCE``, ``DIR`` and ``hf://owner/repo`` arguments to name -> source. A DIR or repository
    serves each file under its own name; what comes from Hugging Face is pinned to today's commit.

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


def _sources(value: str) -> dict[str, str]:
    name, equals, source = value.partition("=")
    if equals and is_persona_id(name):
        return {name: hub.pin(source) if hub.is_hub(source) else source}
    if hub.is_hub(value):
        return hub.contents(value)
    if not Path(value).is_dir():
        raise PalignStartupError(
            f"{value}: neither NAME=PATH nor an existing folder nor hf://owner/repo"
        )
    found = {
        file.name.removesuffix(SUFFIX): str(file) for file in sorted(Path(value).glob(f"*{SUFFIX}"))
    }
    if not found:
        raise PalignStartupError(f"{value}: no {SUFFIX} files in this folder")
    return found
