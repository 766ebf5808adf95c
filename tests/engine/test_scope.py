"""Scope ``answers``: a prompt is computed as without a persona, and found again by everybody; from the first
steered token on nobody meets anybody else's KV."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import oracle
from tests.engine.conftest import RUNNERS, Run
from tests.engine.families import FAMILIES
from tests.engine.mixed import WISHES, MixedBatch
from tests.engine.models import random_persona, random_prompt
from tests.shown import Measured

BOUND = 1e-4
FAMILY = FAMILIES["llama"]
BLOCK = 32
ALL = {"id": "alice", "scope": "all"}


def asked(prompt: list[int], persona: Any = None, tokens: int = 4) -> dict[str, Any]:
    return {
        "prompt": prompt, "persona": persona, "max_tokens": tokens, "prompt_distributions": False,
    }  # fmt: skip


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_prompt_is_everybodys_up_to_the_block_that_holds_its_last_token(
    runner: str, engines: Run, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Plain before alice, alice before plain, bob, and one who is steered everywhere."""
    batch = MixedBatch(tmp_path, checkpoint("llama"), FAMILY)
    sharers = ["alice", "bob", None, {"mix": {"alice": 0.5, "bob": 0.5}}, "alice"]
    orders = [[None, *sharers], ["alice", *sharers], [ALL, ALL, *sharers]]
    ends = {-1: 2, 0: 2, 1: 3}
    """Blocks of a prompt of 96 tokens, one fewer and one more, that lie before its last token."""
    prompts = [
        (random_prompt(10 * order + more + 1, length=3 * BLOCK + more), order, blocks)
        for order in range(len(orders))
        for more, blocks in ends.items()
    ]
    (result,) = engines(
        [
            {
                "model": str(batch.model),
                "kwargs": {"block_size": BLOCK, "max_model_len": 128},
                "personas": batch.files,
                "batches": [
                    [asked(prompt, persona, 1)]
                    for prompt, order, _ in prompts
                    for persona in orders[order]
                ],
            }
        ],
        **RUNNERS[runner],
    )
    assert "error" not in result, result["error"]
    cached = iter([answer["cached"] for (answer,) in result["batches"]])
    for _, order, blocks in prompts:
        found = [next(cached) // BLOCK for _ in orders[order]]
        # What is steered everywhere is its own, and meets nothing of anybody.
        own = [0, blocks] if order == 2 else []
        assert found == [*own, 0, *[blocks] * (len(orders[order]) - len(own) - 1)]


@pytest.mark.parametrize("runner", RUNNERS)
def test_log_probabilities_of_a_prompt_are_stocks_bit_for_bit(
    runner: str, engines: Run, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """A persona's prompt, alone and among others, beside the same of a process where palign is off."""
    batch = MixedBatch(tmp_path, checkpoint("llama"), FAMILY)
    prompt = random_prompt(3, length=21)
    alone = [[{"prompt": prompt, "persona": who}] for who in ("alice", "bob", None)]
    job: dict[str, Any] = {"model": str(batch.model), "personas": batch.files}
    options = RUNNERS[runner]
    stock_environment = {**options.get("environment", {}), "VLLM_PLUGINS": ""}
    (ours,) = engines([job | {"batches": alone}], **options)
    (stock,) = engines(
        [{"model": str(batch.model), "batches": [[{"prompt": prompt}]]}],
        **{**options, "environment": stock_environment},
    )
    assert "error" not in ours and "error" not in stock, (ours, stock)
    wanted = stock["batches"][0][0]["distributions"][: len(prompt) - 1]
    for (answer,) in ours["batches"]:
        assert answer["distributions"][: len(prompt) - 1] == wanted
    steered, plain = ours["batches"][0][0], ours["batches"][2][0]
    assert steered["distributions"][len(prompt) - 1] != plain["distributions"][len(prompt) - 1]


@pytest.mark.shows("features", "chunked prefill, one token a chunk", note="both scopes, V1 and V2")
@pytest.mark.parametrize("runner", RUNNERS)
def test_prompts_that_come_one_token_a_step_are_steered_from_the_same_token_on(
    runner: str,
    engines: Run,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    """Each step looks like one of decodes."""
    batch = MixedBatch(tmp_path, checkpoint("llama"), FAMILY)
    requests = batch.requests(prompt_distributions=False)
    (result,) = engines(
        [
            {
                "model": str(batch.model),
                "kwargs": {"max_num_seqs": 4, "max_num_batched_tokens": 4},
                "personas": batch.files,
                "batches": [requests],
            }
        ],
        **RUNNERS[runner],
    )
    assert "error" not in result, result["error"]
    errors = batch.errors(requests, result["batches"][0])
    measured(errors)
    effect = errors.pop("effect")
    assert max(errors.values()) < BOUND
    assert effect > 1000 * BOUND


def crowd(count: int, names: list[str]) -> list[dict[str, Any]]:
    """Prompts that begin alike and end around the borders of blocks, of everybody and in both scopes."""
    rng = random.Random(0)
    roots = [random_prompt(seed, length=3 * BLOCK + 1) for seed in range(3)]
    requests = []
    for _ in range(count):
        length = rng.randint(1, 3) * BLOCK + rng.choice([-1, 0, 1])
        prompt = rng.choice(roots)[:length]
        if rng.random() < 0.2:
            prompt = [*prompt[:-1], rng.randint(1, 90)]
        kind = rng.random()
        persona: Any = None
        if kind < 0.6:
            persona = {"id": rng.choice(names), "strength": rng.choice([1.0, -0.7])}
        elif kind < 0.8:
            persona = {"mix": {name: rng.choice([0.6, -0.4]) for name in rng.sample(names, 2)}}
        if persona is not None and (scope := rng.choice(["answers", "answers", "all", None])):
            persona["scope"] = scope
        requests.append(asked(prompt, persona, rng.randint(1, 5)))
    return requests


@pytest.mark.shows(
    "features",
    "scopes mixed, few KV blocks",
    note="2,000 requests, borders of blocks, preemption, aborts (V1); 200 (V2)",
)
@pytest.mark.parametrize(("runner", "count"), [("v1", 2000), ("v2", 200)])
def test_a_crowd_of_both_scopes_is_answered_as_by_the_reference_method(
    runner: str,
    count: int,
    engines: Run,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    measured: Measured,
) -> None:
    names = [f"p{seed}" for seed in range(4)]
    personas = {
        name: random_persona(tmp_path / f"{name}.safetensors", seed=seed, family=FAMILY)
        for seed, name in enumerate(names)
    }
    requests = crowd(count, names)
    (result,) = engines(
        [
            {
                "model": str(checkpoint("llama")),
                "kwargs": {
                    "block_size": BLOCK,
                    "max_model_len": 128,
                    "max_num_seqs": 4,
                    # Four of a hundred tokens each would need sixteen.
                    "num_gpu_blocks_override": 12,
                    "disable_log_stats": False,
                },
                "personas": {name: str(tmp_path / f"{name}.safetensors") for name in names},
                "batches": [
                    {"crowd": {"requests": requests, "arrivals": 3, "abort": 0.1, "seed": 1}}
                ],
            }
        ],
        **RUNNERS[runner],
    )
    assert "error" not in result, result["error"]
    (answers,) = result["batches"]
    reference = oracle.load_hf(checkpoint("llama"))
    worst, aborted, found = 0.0, 0, 0
    for request, answer in zip(requests, answers, strict=True):
        if answer is None:
            aborted += 1
            continue
        prompt, persona, tokens = request["prompt"], request["persona"], answer["tokens"]
        found += answer["cached"] > 0
        parts: list[tuple[Any, float]] = []
        if persona is not None:
            weights = persona.get("mix") or {persona["id"]: persona["strength"]}
            parts = [(personas[name], weight) for name, weight in weights.items()]
        start = oracle.first_steered(persona, prompt)
        with oracle.steered(reference, parts, FAMILY.projection, start):
            wanted = oracle.distributions(reference, prompt + tokens, last=len(tokens))
        worst = max(worst, oracle.error(answer["distributions"], wanted))
        assert (wanted.max(-1) - wanted[range(len(tokens)), tokens] <= 2 * BOUND).all()
    measured({"worst": worst})
    assert worst < BOUND
    assert count / 20 < aborted < count / 5 and found > count / 4
    assert result["metrics"]["num_preemptions"] > 0
    assert result["bank"][0]["requests"] == 0


def test_wishes_of_the_mixed_batch_cover_both_scopes() -> None:
    """All families and features are asked with it."""
    scopes = [wish.get("scope") for wish in WISHES.values() if wish]
    assert set(scopes) == {None, "all", "answers"}


def test_the_reference_tells_starts_apart(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """What the tests above would miss if it did not."""
    reference = oracle.load_hf(checkpoint("llama"))
    alice = random_persona(tmp_path / "alice.safetensors", seed=0, family=FAMILY)
    tokens, blend = random_prompt(1, length=12), {alice: 1.0}
    rows = [
        oracle.table(reference, tokens, blend, last=1, start=start)[0] for start in (0, 1, 8, 9, 11)
    ]
    plain = oracle.table(reference, tokens, last=1)[0]
    gaps = [np.abs(one - other).max() for at, one in enumerate(rows) for other in rows[:at]]
    assert min(gaps) > 100 * BOUND
    # The last token only makes room for the one before it.
    assert np.abs(rows[-1] - plain).max() == 0
