"""One mixed batch under each of vLLM's features: steered requests equal the reference method, plain ones
stock vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import oracle
from tests.engine.conftest import RUNNERS, Run
from tests.engine.families import FAMILIES
from tests.engine.mixed import MixedBatch
from tests.engine.models import random_prompt
from tests.shown import Measured

BOUND = 1e-4
"""Largest |log-probability difference|, over the whole vocabulary."""


def long_prompt(seed: int) -> list[int]:
    return random_prompt(seed, length=41)


def echoing_prompt(seed: int) -> list[int]:
    """Where n-gram lookup finds something to draft."""
    return random_prompt(seed, length=5) * 4


def any_result(result: dict[str, Any]) -> None:
    pass


def drafts_were_accepted(result: dict[str, Any]) -> None:
    metrics = result["metrics"]
    assert 0 < metrics["spec_decode_num_accepted_tokens"] < metrics["spec_decode_num_draft_tokens"]


def a_step_was_scheduled_before_the_last_one_was_over(result: dict[str, Any]) -> None:
    assert result["schedules_ahead"]


@dataclass(frozen=True)
class Feature:
    """Engine arguments that turn it on, requests that use it, and what proves that it was used."""

    note: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    requests: dict[str, Any] = field(default_factory=dict)
    priorities: tuple[int, ...] = (0, 0, 0, 0)
    runners: tuple[str, ...] = ("v1", "v2")
    tamper: str | None = None
    used: Callable[[dict[str, Any]], None] = any_result


STATISTICS = {"disable_log_stats": False}

FEATURES = {
    "eager mode, logprobs and prompt logprobs": Feature("whole distributions"),
    "chunked prefill": Feature(
        "prompts of 41 tokens, at most 16 tokens a step",
        kwargs={"max_num_batched_tokens": 16},
        requests={"prompt": long_prompt},
    ),
    "n > 1": Feature(
        "three samples of each, temperature 1",
        requests={"sampling": {"n": 3, "temperature": 1.0, "seed": 5}},
    ),
    "priority scheduling": Feature(
        "two at a time, last come first",
        kwargs={"scheduling_policy": "priority", "max_num_seqs": 2},
        priorities=(3, 2, 1, 0),
    ),
    "asynchronous scheduling": Feature(
        "vLLM turns it off on a CPU, in all other rows; here it is turned on again",
        requests={"max_tokens": 8},
        tamper="asynchronous_scheduling",
        used=a_step_was_scheduled_before_the_last_one_was_over,
    ),
    # Last, because it imports llvmlite, and vLLM starts no other engine in a process that has.
    "n-gram speculative decoding": Feature(
        "three drafted tokens",
        kwargs=STATISTICS
        | {
            "speculative_config": {
                "method": "ngram",
                "num_speculative_tokens": 3,
                "prompt_lookup_max": 3,
                "prompt_lookup_min": 1,
            }
        },
        requests={"prompt": echoing_prompt, "max_tokens": 24, "prompt_distributions": False},
        runners=("v1",),
        used=drafts_were_accepted,
    ),
}


@dataclass
class Answered:
    """Every feature's results on one runner: with palign, and stock vLLM's on the plain request."""

    batch: MixedBatch
    requests: dict[str, list[dict[str, Any]]]
    steered: dict[str, dict[str, Any]]
    stock: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def answered(
    engines: Run, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Answered]:
    """``answered("v1")``: all features in one process, and the same engines without palign in another."""
    batch = MixedBatch(tmp_path_factory.mktemp("personas"), checkpoint("llama"), FAMILIES["llama"])
    done: dict[str, Answered] = {}

    def on(runner: str) -> Answered:
        if runner not in done:
            names = [name for name, feature in FEATURES.items() if runner in feature.runners]
            requests = {name: requests_of(FEATURES[name], batch) for name in names}
            jobs = [job_of(FEATURES[name], batch, requests[name]) for name in names]
            plain = [
                {key: value for key, value in job.items() if key != "personas"}
                | {"batches": [[request | {"persona": None} for request in job["batches"][0]]]}
                for job in jobs
            ]
            options = RUNNERS[runner]
            stock = {**options, "environment": {"VLLM_PLUGINS": None}}
            done[runner] = Answered(
                batch,
                requests,
                dict(zip(names, engines(jobs, **options), strict=True)),
                dict(zip(names, engines(plain, **stock), strict=True)),
            )
        return done[runner]

    return on


def requests_of(feature: Feature, batch: MixedBatch) -> list[dict[str, Any]]:
    requests = batch.requests(**feature.requests)
    return [
        request | {"priority": priority}
        for request, priority in zip(requests, feature.priorities, strict=True)
    ]


def job_of(feature: Feature, batch: MixedBatch, requests: list[dict[str, Any]]) -> dict[str, Any]:
    job = {
        "model": str(batch.model),
        "kwargs": feature.kwargs,
        "personas": batch.files,
        "batches": [requests],
    }
    return job | ({"tamper": feature.tamper} if feature.tamper else {})


def cases() -> Iterator[Any]:
    for name, feature in FEATURES.items():
        for runner in feature.runners:
            yield pytest.param(
                name, runner, marks=pytest.mark.shows("features", name, note=feature.note)
            )


@pytest.mark.parametrize(("name", "runner"), list(cases()))
def test_a_mixed_batch_equals_the_reference_method_and_its_plain_request_stock_vllm(
    name: str, runner: str, answered: Callable[[str], Answered], measured: Measured
) -> None:
    found = answered(runner)
    result, stock = found.steered[name], found.stock[name]
    assert "error" not in result, result["error"]
    assert "error" not in stock, stock["error"]
    FEATURES[name].used(result)
    answers, requests = result["batches"][0], found.requests[name]
    errors = found.batch.errors(requests, answers)
    samples = len(answers) // len(requests)
    errors["stock"] = max(
        oracle.error(answer["distributions"], plain["distributions"])
        for answer, plain in zip(answers[:samples], stock["batches"][0][:samples], strict=True)
    )
    measured(errors)
    effect = errors.pop("effect")
    assert max(errors.values()) < BOUND
    # Nothing applied, or another's persona, could not stay within the bound.
    assert effect > 1000 * BOUND
    assert all(bank["requests"] == 0 for bank in result["bank"])
