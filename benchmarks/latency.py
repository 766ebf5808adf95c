"""What an idle plugin costs the engine alone: stock vLLM and the plugin switched on, by ``vllm bench latency``.

    python benchmarks/latency.py [--pairs N]

Each pair is two fresh processes, one after the other on the same core, every other pair in the other order:
two processes of one kind differ by a percent or two, so the median over pairs is what counts. In every
process one batch of 16 x (32 + 64) tokens again and again. bfloat16, compiled. About a minute and a half a pair.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from price import MODEL
from servers import ENVIRONMENT
from tables import spread

BATCH, PROMPT, TOKENS = 16, 32, 64
WARM_UP, ITERATIONS = 1, 5


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=6)
    options = parser.parse_args()
    ratios = []
    for pair in range(options.pairs):
        order = ("stock", "idle") if pair % 2 else ("idle", "stock")
        seconds = {name: latency(enabled=name == "idle") for name in order}
        ratios.append(seconds["stock"] / seconds["idle"])
        print(
            f"pair {pair + 1}: stock {seconds['stock']:.4f} s, idle {seconds['idle']:.4f} s",
            flush=True,
        )
    print(f"idle, of stock's speed: {spread(ratios)}")
    return 0


def latency(*, enabled: bool) -> float:
    """Median seconds of one batch in a fresh process."""
    environment = {**os.environ, **ENVIRONMENT}
    environment.pop("VLLM_PLUGINS", None)
    if enabled:
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
                preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
            )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"vllm bench latency failed:\n{log.read_text()[-4000:]}")
        seconds: list[float] = json.loads(result.read_text())["latencies"]
    return statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
