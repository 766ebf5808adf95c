"""torch.compile stays on, and no graph compiled without the op is ever used with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.engine.conftest import RUNNERS, Run
from tests.engine.families import FAMILIES
from tests.engine.models import random_persona, random_prompt
from tests.shown import Measured

BOUND = 1e-4
FAMILY = FAMILIES["llama"]


@pytest.fixture(scope="module")
def personas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("personas")
    return {who: folder / f"{who}.safetensors" for who in ("alice", "bob")}


@pytest.mark.shows("features", "torch.compile", note="other batch sizes than compiled with")
def test_compiled_steered_answers_equal_the_reference_method(
    engines: Run,
    checkpoint: Callable[[str], Path],
    personas: dict[str, Path],
    measured: Measured,
) -> None:
    alice, bob = (
        random_persona(file, seed=seed, family=FAMILY)
        for seed, file in enumerate(personas.values())
    )
    path = checkpoint("llama")
    wishes: list[tuple[Any, Any]] = [
        ({alice: 1.0}, "alice"),
        ({}, None),
        ({bob: -1.3}, {"id": "bob", "strength": -1.3}),
        ({alice: 0.5, bob: 0.5}, {"mix": {"alice": 0.5, "bob": 0.5}}),
    ]
    batches = [
        # Other numbers of requests and tokens than the model was compiled with.
        [
            {"prompt": random_prompt(seed, length=5 + 4 * seed), "persona": wish, "max_tokens": 6}
            for seed, (_, wish) in enumerate(wishes[:size])
        ]
        for size in (1, 4)
    ]
    result, stale = engines(
        [
            {
                "model": str(path),
                "kwargs": {"enforce_eager": False},
                "personas": {who: str(file) for who, file in personas.items()},
                "batches": batches,
            },
            {
                "model": str(path),
                "kwargs": {"enforce_eager": False},
                "tamper": "stale_compiled_graph",
            },
        ]
    )
    assert "error" not in result, result["error"]
    assert result["compiled"]
    model = oracle.load_hf(path)
    errors = []
    for requests, answers in zip(batches, result["batches"], strict=True):
        for request, answer, (blend, _) in zip(requests, answers, wishes, strict=False):
            tokens, start = request["prompt"] + answer["tokens"], len(request["prompt"]) - 1
            with oracle.steered(model, blend, FAMILY.projection, start):
                wanted = oracle.distributions(model, tokens)
            errors.append(oracle.error(answer["distributions"], wanted))
            if blend:
                assert oracle.error(wanted, oracle.distributions(model, tokens)) > 1000 * BOUND
    measured({"compiled": max(errors)})
    assert max(errors) < BOUND
    # And a compiled graph that lacks the op stops the start.
    assert stale["error"]["type"] == "PalignStartupError"
    assert "layers [0, 1] of 2 armed do not change" in stale["error"]["message"]


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_start_is_refused_when_one_layer_has_lost_its_hook(
    runner: str, engines: Run, checkpoint: Callable[[str], Path]
) -> None:
    (result,) = engines(
        [{"model": str(checkpoint("llama")), "tamper": "without_hook_of_layer_1"}],
        **RUNNERS[runner],
    )
    assert result["error"]["type"] == "PalignStartupError"
    assert "layers [1] of 2 armed do not change" in result["error"]["message"]


def test_the_compile_cache_key_follows_the_traced_code_and_nothing_else_of_ours(
    engines: Run, checkpoint: Callable[[str], Path], personas: dict[str, Path]
) -> None:
    for seed, file in enumerate(personas.values()):
        random_persona(file, seed=seed, family=FAMILY)
    alice, bob = map(str, personas.values())
    job = {"model": str(checkpoint("llama")), "only_config": True}
    none, one, two, upgraded = (
        result["config_hash"]
        for result in engines(
            [
                job | {"personas": {}},
                job | {"personas": {"alice": alice}},
                job | {"personas": {"alice": bob, "bob": bob}},
                job | {"personas": {"alice": alice}, "tamper": "other_traced_code"},
            ]
        )
    )
    (stock,) = (
        result["config_hash"] for result in engines([dict(job)], environment={"VLLM_PLUGINS": None})
    )
    assert none == one == two
    assert len({one, upgraded, stock}) == 3
