"""Streaming-input sessions of ``AsyncLLM``: vLLM takes a later part's sampling parameters and not its salt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Run
from tests.engine.families import FAMILIES
from tests.engine.models import random_persona, random_prompt

BLOCK = 32
ALICE, BOB = {"id": "alice", "scope": "all"}, {"id": "bob", "scope": "all"}
SESSIONS: dict[str, list[Any]] = {
    "plain": [None, None],
    "alice": [ALICE, ALICE],
    "alice answers": ["alice", "alice"],
    "plain, then alice": [None, ALICE],
    "alice, then plain": [ALICE, None],
    "alice, then bob": [ALICE, BOB],
    "alice, then her answers": [ALICE, "alice"],
}


@pytest.fixture(scope="module")
def found(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("personas")
    model = checkpoint("llama")
    for seed, name in enumerate(("alice", "bob")):
        random_persona(folder / f"{name}.safetensors", seed=seed, family=FAMILIES["llama"])
    job = {
        "model": str(model),
        "scenarios": ["sessions"],
        "personas": {name: str(folder / f"{name}.safetensors") for name in ("alice", "bob")},
        "kwargs": {"max_model_len": 128, "block_size": BLOCK, "enable_prefix_caching": True},
        "parts": [random_prompt(1, length=BLOCK), random_prompt(2, length=BLOCK)],
        "sessions": SESSIONS,
    }
    (result,) = engines([job], script="async_driver.py")
    assert "error" not in result, result
    return dict(result[0])


@pytest.mark.parametrize("name", ["plain", "alice", "alice answers"])
def test_a_session_that_keeps_its_effect_goes_on(name: str, found: dict[str, Any]) -> None:
    assert "error" not in found[name]
    assert len(found[name]["tokens"]) == 2


@pytest.mark.parametrize("name", [name for name in SESSIONS if ", then" in name])
def test_a_part_with_another_effect_is_refused(name: str, found: dict[str, Any]) -> None:
    assert found[name]["error"] == "PersonaConflict"
    assert "begin another session" in found[name]["message"]
    assert len(found[name]["tokens"]) == 1, "the first part was answered"


def test_what_a_refused_part_would_have_written_serves_nobody(found: dict[str, Any]) -> None:
    """Bob has asked for nothing but a part that was refused, so no block of this prompt is his."""
    assert found["after, bob"]["cached"] == 0
    assert found["after, None"]["cached"] > 0
    assert found["after, alice"]["cached"] > 0
