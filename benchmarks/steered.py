"""What steering costs beyond an idle plugin, in one engine: turns of the same load take turns.

    python benchmarks/steered.py [--minutes N] [--json FILE]

Two processes of one kind differ by a percent or two, more than steering costs; so here one engine in this
process, on one core, answers the same batch again and again: unsteered, of one persona, of 16, 64, 256.
Every turn goes the whole way of ``LLM.generate``, looking personas up included. Ratios are of turns of one
round, every other round goes backwards; printed are medians with their 95 % bootstrap intervals. Prompts are
random tokens, no prefix cache; bfloat16, compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from price import MODEL, ROOT
from servers import ENVIRONMENT
from subjects import write_personas

MOST = 256


@dataclass
class Load:
    """``batch`` prompts of ``prompt`` tokens, ``tokens`` new ones each; personas in turn from the first
    ``personas``. ``seconds`` of every turn; variant 0 is unsteered."""

    batch: int
    prompt: int
    tokens: int
    personas: tuple[int, ...]
    seconds: dict[int, list[float]] = field(default_factory=dict)


LOADS = (
    Load(1, 16, 64, (0, 1)),
    Load(16, 16, 48, (0, 1, 16)),
    Load(256, 4, 12, (0, 1, 16, 64, 256)),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="of measuring, for all loads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every turn to FILE")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ |= {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_PLUGINS": "palign"}
    subprocess.run([sys.executable, ROOT / "tools" / "demo_model.py", MODEL], check=True)
    with tempfile.TemporaryDirectory() as folder:
        names = write_personas(Path(folder) / "personas", MOST)
        files = {name: Path(folder) / "personas" / f"{name}.safetensors" for name in names}
        llm = engine(files)
        check_steered(llm, names)
        for load in LOADS:
            measure(llm, load, names, 60 * options.minutes / len(LOADS))
            if options.json:
                options.json.write_text(json.dumps([vars(load) for load in LOADS]))
    print(
        "| batch | rounds | " + " | ".join(f"{n} personas" for n in LOADS[-1].personas[1:]) + " |"
    )
    print("|---" * (1 + len(LOADS[-1].personas)) + "|")
    for load in LOADS:
        print(row(load))
    return 0


def engine(personas: dict[str, Path]) -> Any:
    from vllm import LLM

    return LLM(
        str(MODEL),
        max_model_len=256,
        max_num_seqs=MOST,
        enable_prefix_caching=False,
        # A worker process of its own would spin on the core that it shares with this one.
        distributed_executor_backend="vllm.v1.executor.uniproc_executor.UniProcExecutor",
        additional_config={"palign": {"personas": personas}},
    )


def check_steered(llm: Any, names: list[str]) -> None:
    """Raises SystemExit unless every persona changes what is said after one prompt."""
    from vllm import SamplingParams

    from vllm_palign import persona_args

    who = [None, *[persona_args(name) for name in names]]
    sampling = [
        SamplingParams(
            max_tokens=8, temperature=0.0, ignore_eos=True, detokenize=False, logprobs=0,
            extra_args=one,
        )
        for one in who
    ]  # fmt: skip
    prompts = [{"prompt_token_ids": [5, 600, 7000, 42, 9]}] * len(who)
    answers = llm.generate(prompts, sampling, use_tqdm=False)
    plain, *steered = [answer.outputs[0].cumulative_logprob for answer in answers]
    if plain in steered:
        raise SystemExit(f"{names[steered.index(plain)]} was asked for and changed nothing")


def measure(llm: Any, load: Load, names: list[str], seconds: float) -> None:
    """Rounds of ``load`` for ``seconds``, after one that is not counted."""
    rng = np.random.default_rng(load.batch)
    for count in load.personas:
        turn(llm, load, names[:count], rng)
        load.seconds[count] = []
    began = time.perf_counter()
    forward = True
    while time.perf_counter() - began < seconds:
        for count in load.personas if forward else load.personas[::-1]:
            load.seconds[count].append(turn(llm, load, names[:count], rng))
        forward = not forward
    print(f"batch {load.batch}: {len(load.seconds[0])} rounds", file=sys.stderr, flush=True)


def turn(llm: Any, load: Load, names: list[str], rng: np.random.Generator) -> float:
    """Seconds of one batch."""
    from vllm import SamplingParams

    from vllm_palign import persona_args

    prompts = rng.integers(100, 40_000, (load.batch, load.prompt)).tolist()
    sampling = [
        SamplingParams(
            max_tokens=load.tokens,
            temperature=0.0,
            ignore_eos=True,
            detokenize=False,
            extra_args=persona_args(names[number % len(names)]) if names else None,
        )
        for number in range(load.batch)
    ]
    began = time.perf_counter()
    answers = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts], sampling, use_tqdm=False
    )
    took = time.perf_counter() - began
    if any(len(answer.outputs[0].token_ids) != load.tokens for answer in answers):
        raise SystemExit("a request did not get all its tokens")
    return took


def row(load: Load) -> str:
    idle = np.array(load.seconds[0])
    cells = [
        interval(idle / np.array(load.seconds[count])) if count in load.seconds else ""
        for count in LOADS[-1].personas[1:]
    ]
    return " | ".join([f"| {load.batch}", str(len(idle)), *cells]) + " |"


def interval(ratios: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """``median (low to high)``: 95 % bootstrap, seeded."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return f"{np.median(ratios):.4f} ({low:.4f} to {high:.4f})"


if __name__ == "__main__":
    sys.exit(main())
