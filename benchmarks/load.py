"""One load on one server, by ``vllm bench serve`` itself, in this process."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import SERVED, Server


@dataclass
class Outcome:
    """What one load came to; seconds for each request, ``itls`` for each token but the first."""

    tokens_per_second: float
    ttfts: list[float]
    tpots: list[float]
    memory: float
    """MiB of the server after the load."""
    kv_blocks: int
    """KV blocks of all requests at their ends."""


def measure(
    server: Server,
    model: Path,
    prompts: Sequence[str],
    tokens: int,
    names: Sequence[str],
    folder: Path,
) -> Outcome:
    """Send all ``prompts`` at once, ``tokens`` greedy tokens each. ``names`` are the model names that requests
    take in turn: ``SmolLM2@p3`` is a persona, ``a3`` an adapter, none the model itself.

    Raises SystemExit unless every request was answered with all its tokens.
    """
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    dataset = folder / "prompts.jsonl"
    dataset.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    arguments = [
        "--port", str(server.port), "--model", str(model), "--served-model-name", SERVED,
        "--dataset-name", "custom", "--dataset-path", str(dataset), "--num-prompts", str(len(prompts)),
        "--custom-output-len", str(tokens), "--skip-chat-template", "--disable-shuffle",
        "--ignore-eos", "--temperature", "0", "--ready-check-timeout-sec", "0", "--save-detailed",
        "--disable-tqdm",
    ]  # fmt: skip
    if names:
        # vLLM's way to another model name for each request; the names need not be adapters.
        arguments += ["--lora-assignment", "round-robin", "--lora-modules", *names]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        result: dict[str, Any] = main(parser.parse_args(arguments))
    if result["completed"] != len(prompts) or set(result["output_lens"]) != {tokens}:
        raise SystemExit(f"not every request was answered:\n{said.getvalue()[-4000:]}")
    block, _ = server.kv_blocks()
    return Outcome(
        tokens_per_second=result["output_throughput"],
        ttfts=result["ttfts"],
        tpots=[
            (latency - ttft) / (tokens - 1)
            for latency, ttft in zip(result["latencies"], result["ttfts"], strict=True)
        ],
        memory=server.memory(),
        kv_blocks=sum(-(-(length + tokens) // block) for length in result["input_lens"]),
    )
