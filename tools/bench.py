"""What steering costs: vanilla vLLM, plugin idle, and every request steered with its own persona.

    python tools/bench.py [--repetitions N] [--tokens N] [--batch N] [--json]

Two engines of the demo model, one without and one with the plugin, each in its own process on the same
single core, take turns on the same batch in one run. Ratios are of neighbouring turns; printed are
medians with the quartiles. bfloat16, torch.compile on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".demo" / "SmolLM2-135M-Instruct"
PROMPT_TOKENS = 32

ENVIRONMENT = {
    # Spinning OpenMP threads of the engine whose turn it is not would slow the other one down.
    "OMP_NUM_THREADS": "1",
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens a request")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        return worker(options)
    subprocess.run(
        [sys.executable, ROOT / "tools" / "demo_model.py", MODEL], check=True, stdout=sys.stderr
    )
    with tempfile.TemporaryDirectory() as folder:
        write_personas(Path(folder), options.batch)
        result = measure(options, folder)
    print(json.dumps(result) if options.json else table(result, options))
    return 0


def measure(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    stock, ours = Engine(options, ""), Engine(options, folder)
    turns: dict[str, list[dict[str, float]]] = {"vanilla": [], "idle": [], "steered": []}
    sources = {"vanilla": (stock, False), "idle": (ours, False), "steered": (ours, True)}
    for repetition in range(-1, options.repetitions):
        # Every other round backwards: what drifts with time hits all three alike.
        names = list(sources) if repetition % 2 else list(sources)[::-1]
        for name in names:
            engine, steer = sources[name]
            turn = engine.turn(steer)
            if repetition >= 0:  # the first round warms up
                turns[name].append(turn)
        print(f"round {repetition + 1} of {options.repetitions}", file=sys.stderr)
    stock.close()
    ours.close()
    result: dict[str, Any] = {}
    for name, rows in turns.items():
        rates = [row["tokens_per_second"] for row in rows]
        result[name] = {
            "tokens_per_second": statistics.median(rates),
            "tpot_ms": statistics.median(row["tpot_ms"] for row in rows),
            "ratio": quartiles(
                [rate / base["tokens_per_second"] for rate, base in zip(rates, turns["vanilla"], strict=True)]
            ),
        }  # fmt: skip
    return result


def quartiles(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in statistics.quantiles(values, n=4)]


def table(result: dict[str, Any], options: argparse.Namespace) -> str:
    lines = [
        f"SmolLM2-135M bf16, compiled, one core, batch {options.batch} x {options.tokens} tokens, "
        f"{options.repetitions} alternating rounds",
        f"{'':10}{'tokens/s':>10}{'TPOT ms':>10}{'of vanilla':>12}   quartiles",
    ]
    lines += [
        f"{name:10}{row['tokens_per_second']:10.1f}{row['tpot_ms']:10.2f}{row['ratio'][1]:12.3f}"
        f"   {row['ratio'][0]:.3f} to {row['ratio'][2]:.3f}"
        for name, row in result.items()
    ]
    return "\n".join(lines)


class Engine:
    """One engine process that runs a batch when told to."""

    def __init__(self, options: argparse.Namespace, personas: str) -> None:
        environment = {**os.environ, **ENVIRONMENT}
        environment.pop("VLLM_PLUGINS", None)
        if personas:
            environment["VLLM_PLUGINS"] = "palign"
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", personas, "--tokens", str(options.tokens), "--batch", str(options.batch)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._read()

    def turn(self, steer: bool) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write("steer\n" if steer else "plain\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                answer: dict[str, float] = json.loads(line.removeprefix("RESULT "))
                return answer
        raise SystemExit("an engine process ended; its messages are above")


def worker(options: argparse.Namespace) -> int:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from vllm import LLM, SamplingParams

    names = [f"p{seed}" for seed in range(options.batch)] if options.worker else []
    config = {
        "palign": {"personas": {name: f"{options.worker}/{name}.safetensors" for name in names}}
    }
    llm = LLM(
        str(MODEL), max_model_len=PROMPT_TOKENS + options.tokens, max_num_seqs=options.batch, seed=0,
        enable_prefix_caching=False, disable_log_stats=False, additional_config=config if names else {},
    )  # fmt: skip
    prompts: Any = [
        {"prompt_token_ids": [100 + 37 * row + column for column in range(PROMPT_TOKENS)]}
        for row in range(options.batch)
    ]
    reply({})
    for command in sys.stdin:
        extra: list[dict[str, Any] | None] = [None] * options.batch
        if command.strip() == "steer":
            from vllm_palign import persona_args

            extra = [persona_args(name) for name in names]
        params = [
            SamplingParams(
                temperature=0, max_tokens=options.tokens, ignore_eos=True, extra_args=args
            )
            for args in extra
        ]
        began = time.perf_counter()
        outs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - began
        spans = [
            out.metrics.last_token_ts - out.metrics.first_token_ts for out in outs if out.metrics
        ]
        reply(
            {
                "tokens_per_second": options.batch * options.tokens / seconds,
                "tpot_ms": 1000 * statistics.median(spans) / (options.tokens - 1),
            }
        )
    return 0


def reply(answer: dict[str, float]) -> None:
    # vLLM logs to stdout too, perhaps without ending the line.
    print(f"\nRESULT {json.dumps(answer)}", flush=True)


def write_personas(folder: Path, count: int) -> None:
    """Random personas of the usual size: 24 heads."""
    import numpy as np

    from vllm_palign import Persona, save

    for seed in range(count):
        rng = np.random.default_rng(seed)
        places = np.sort(rng.choice(30 * 9, 24, replace=False)).astype(np.int32)
        persona = Persona(
            name=f"p{seed}", layers=places // 9, heads=places % 9,
            offsets=(rng.standard_normal((24, 64)) * 0.02).astype(np.float32), alpha=4.0,
            base_model="HuggingFaceTB/SmolLM2-135M-Instruct", num_layers=30, num_heads=9, head_dim=64,
        )  # fmt: skip
        save(persona, folder / f"p{seed}.safetensors")


if __name__ == "__main__":
    sys.exit(main())
