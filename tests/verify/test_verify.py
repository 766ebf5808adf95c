"""palign verify: the real command on a real engine, and what it says of engines that go wrong."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vllm_palign.shape import ModelShape
from vllm_palign.verify.checks import Check, compare, judge
from vllm_palign.verify.engine import BATCHES, DECODE, KV_SEQUENCE, PROMPT, REQUESTS, Observed
from vllm_palign.verify.shapes import Shape, write_shape

PALIGN = Path(sys.executable).with_name("palign")


def palign_verify(*arguments: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [PALIGN, "verify", *arguments], capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def test_a_working_engine_passes_and_what_it_cannot_show_is_said(tiny_model: Path) -> None:
    code, out, err = palign_verify(tiny_model, "--eager", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert not report["failed"]
    (engine,) = report["engines"].values()
    verdicts = {check["name"]: check["verdict"] for check in engine["checks"]}
    graphs = verdicts.pop("CUDA graphs were replayed with other personas in their slots")
    assert graphs == "not checked"
    assert len(verdicts) == 8
    assert set(verdicts.values()) == {"ok"}
    assert "no CUDA graphs on this machine" in out
    assert engine["environment"]["runner"] == "V1"


def test_an_engine_that_does_not_start_is_a_failed_check(tmp_path: Path) -> None:
    code, out, _ = palign_verify(tmp_path / "nowhere", "--eager")
    assert code == 1
    assert "FAILED  the engine starts and answers" in out
    assert out.rstrip().endswith("FAILED")


def test_a_model_or_a_shape_is_wanted() -> None:
    for arguments in ([], ["model", "--shape", "llama-3.1-8b"]):
        code, _, err = palign_verify(*arguments)
        assert code == 2
        assert "give a MODEL or --shape" in err


def test_the_shape_of_llama_8b_is_what_vllm_reads(tmp_path: Path) -> None:
    from vllm import EngineArgs

    folder = write_shape(Shape.llama_3_1_8b, tmp_path)
    config = EngineArgs(model=str(folder), skip_tokenizer_init=True).create_model_config()
    shape = ModelShape.of(config)
    assert (shape.num_layers, shape.num_heads, shape.head_dim) == (32, 32, 128)
    assert str(config.dtype) == "torch.bfloat16"


def observed(noise: float = 0.0, seed: int = 0, **environment: Any) -> Observed:
    """An engine on a GPU that does everything right, every number off by ``noise``."""
    rng = np.random.default_rng(seed)
    width = PROMPT - 1 + DECODE
    truth = np.random.default_rng(9)
    plain = truth.normal(size=(REQUESTS, width))
    effects = {
        who: truth.normal(size=width) for who in ("alice", "bob", "carol", "dave", "erin", "frank")
    }

    def score(who: Any, row: int) -> np.ndarray:
        if isinstance(who, dict) and "strength" not in who:
            who = who["id"]
        effect = effects[who] if isinstance(who, str) else 0.0
        return plain[row] + effect + noise * rng.normal(size=width)

    return Observed(
        environment={"cuda": "13.0", "cudagraph_mode": "FULL", **environment},
        armed={"layers": 3, "heads": 4, "slots": 4, "mib": 0.1},
        scores={
            name: [score(who, row).tolist() for row, who in enumerate(wishes)]
            for name, wishes in BATCHES.items()
        },
        replays=dict.fromkeys(BATCHES, DECODE),
        cached={
            name: 0 if name in ("alice first", "plain first", "bob first") else 256
            for name in KV_SEQUENCE
        },
        kv_scores={name: score(who, 0)[-DECODE:].tolist() for name, who in KV_SEQUENCE.items()},
    )


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if check.verdict == "FAILED"]


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_what_an_engine_does_right_passes_with_and_without_rounding_noise(noise: float) -> None:
    one, other = observed(noise), observed(noise, seed=1)
    assert failed([*judge(one), compare(one, other)]) == []


def lost_op(seen: Observed) -> None:
    for name in seen.scores:
        seen.scores[name] = copy.deepcopy(seen.scores["plain"])


def one_for_all(seen: Observed) -> None:
    seen.scores["bob"] = copy.deepcopy(seen.scores["alice"])


def steered_neighbour(seen: Observed) -> None:
    seen.scores["mixed"][1] = seen.scores["alice"][1]


def zero_steers(seen: Observed) -> None:
    seen.scores["strength 0"][3] = seen.scores["alice"][3]


def stale_slots(seen: Observed) -> None:
    seen.scores["mixed again"][0] = seen.scores["others"][0]


def old_row(seen: Observed) -> None:
    seen.scores["others"][0] = seen.scores["alice"][0]


def not_a_number(seen: Observed) -> None:
    seen.scores["mixed"][2][5] = float("nan")


def shared_kv(seen: Observed) -> None:
    seen.cached["bob first"] = 256


def wrong_kv(seen: Observed) -> None:
    seen.kv_scores["alice again"] = seen.kv_scores["bob first"]


def plain_answers(seen: Observed) -> None:
    for who in ("answers first", "answers again"):
        # Off by rounding, as an engine's would be.
        seen.kv_scores[who] = seen.kv_scores["plain again"]


def prompts_of_their_own(seen: Observed) -> None:
    seen.cached["answers first"] = 0


def no_replay(seen: Observed) -> None:
    seen.replays["others"] = 0


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (lost_op, "steered differs from plain"),
        (one_for_all, "steered differs from plain"),
        (steered_neighbour, "two personas, a plain request"),
        (not_a_number, "two personas, a plain request"),
        (zero_steers, "strength 0 equals plain"),
        (stale_slots, "the same after other personas"),
        (old_row, "a persona that took a used slot"),
        (shared_kv, "KV blocks are shared"),
        (wrong_kv, "KV blocks are shared"),
        (plain_answers, "scope answers"),
        (prompts_of_their_own, "scope answers"),
        (no_replay, "CUDA graphs were replayed"),
    ],
)
def test_every_fault_fails_its_check(fault: Callable[[Observed], None], check: str) -> None:
    seen = observed(0.01)
    fault(seen)
    assert any(name.startswith(check) for name in failed(judge(seen)))


def test_answers_unlike_eager_mode_s_fail_the_comparison() -> None:
    wrong = observed(0.01)
    wrong.scores["carol"] = wrong.scores["plain"]
    assert compare(wrong, observed(0.01, seed=1)).verdict == "FAILED"


def test_an_engine_without_graphs_or_prefix_cache_is_said_to_be_unchecked_there() -> None:
    seen = observed(cudagraph_mode="NONE")
    seen.cached.clear()
    verdicts = [check.verdict for check in judge(seen)]
    assert verdicts.count("not checked") == 3
