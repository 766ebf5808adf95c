"""What an idle plugin costs the engine alone: stock vLLM and the plugin switched on, by ``vllm bench latency``.

    python benchmarks/latency.py [--rounds N]

In a round two fresh processes run at the same time, a core each, then two more the other way round; its ratio
is the geometric mean of both. Two processes of one kind differ by a percent or two, so the median over rounds
is what counts. In every process one batch of 16 x (32 + 64) tokens again and again. bfloat16, compiled.
Three to four minutes a round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from price import MODEL
from servers import ENVIRONMENT
from tables import spread

BATCH, PROMPT, TOKENS = 16, 32, 64
WARM_UP, ITERATIONS = 1, 8


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two cores are needed, one for each of a pair")
    ratios = []
    for number in range(options.rounds):
        there, back = pair(cores), pair(cores[::-1])
        ratios.append(statistics.geometric_mean((there, back)))
        print(f"round {number + 1}: {there:.3f} and {back:.3f}", file=sys.stderr, flush=True)
    print(f"idle, of stock's speed: {spread(ratios)}")
    return 0


def pair(cores: list[int]) -> float:
    """Idle's speed of stock's, both at the same time, stock on the first core."""
    with ThreadPoolExecutor() as pool:
        stock = pool.submit(latency, "stock", cores[0])
        idle = pool.submit(latency, "idle", cores[1])
        return stock.result() / idle.result()


def latency(name: str, core: int) -> float:
    """Median seconds of one batch in a fresh process on ``core``."""
    os.sched_setaffinity(0, {core})  # of this thread, and what it starts
    environment = {**os.environ, **ENVIRONMENT}
    environment.pop("VLLM_PLUGINS", None)
    if name == "idle":
        environment["VLLM_PLUGINS"] = "palign"
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "latency.json", Path(folder) / "log"
        with log.open("wb") as out:
            done = subprocess.run(
                [
                    Path(sys.executable).with_name("vllm"), "bench", "latency", "--model", MODEL,
                    "--max-model-len", "256", "--max-num-seqs", str(BATCH), "--batch-size", str(BATCH),
                    "--input-len", str(PROMPT), "--output-len", str(TOKENS), "--disable-detokenize",
                    "--num-iters-warmup", str(WARM_UP), "--num-iters", str(ITERATIONS), "--output-json", result,
                ],
                stdout=out, stderr=out, env=environment, check=False,
            )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"vllm bench latency failed:\n{log.read_text()[-4000:]}")
        seconds: list[float] = json.loads(result.read_text())["latencies"]
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
