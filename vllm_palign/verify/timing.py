"""Time per output token beside stock vLLM: two engines on one device take turns on the same batches.

python -m vllm_palign.verify.timing JOB.json RESULT.json
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vllm_palign.verify.subjects import Subject, model_shape, prompt, write_personas

BATCHES = (1, 8, 64, 256)
PERSONAS = max(BATCHES)
ROUNDS = 5
PROMPT, TOKENS = 32, 64
VARIANTS = {"stock": 0, "idle": 0, "1 persona": 1, "256 personas": PERSONAS}
"""Variant -> distinct personas, taken in turn by the requests of a batch."""
_TARGET = 0.01
"""Share of the time per token that steering may take."""


def compare(job_file: str) -> dict[str, Any]:
    """``rows`` of batch, variant, ``tpot_ms`` (median) and ``ratio`` to stock (quartiles of neighbouring turns);
    ``op`` as ``op_times`` gives it, with ``of_tpot``; ``lines`` to print."""
    stock, steered = Engine("stock", job_file), Engine("palign", job_file)
    try:
        rows = []
        for batch in BATCHES:
            turns: dict[str, list[float]] = {name: [] for name in VARIANTS}
            for turn in range(-1, ROUNDS):
                # Every other round backwards: what drifts with time hits all alike.
                for name in list(VARIANTS)[:: -1 if turn % 2 else 1]:
                    engine = stock if name == "stock" else steered
                    seconds = engine.ask({"batch": batch, "personas": VARIANTS[name]})
                    if turn >= 0:  # the first round warms up
                        turns[name].append(seconds)
            for name, times in turns.items():
                ratios = [one / other for one, other in zip(times, turns["stock"], strict=True)]
                rows.append(
                    {
                        "batch": batch,
                        "variant": name,
                        "tpot_ms": 1000 * statistics.median(times),
                        "ratio": statistics.quantiles(ratios, n=4),
                    }
                )
        idle = {row["batch"]: row["tpot_ms"] for row in rows if row["variant"] == "idle"}
        layers, op = steered.ask({"op": True})
        for row in op:
            row["of_tpot"] = layers * row["microseconds"] / 1000 / idle[row["batch"]]
    finally:
        stock.close()
        steered.close()
    return {"rows": rows, "op": op, "lines": _lines(rows, op)}


def _lines(rows: list[dict[str, Any]], op: list[dict[str, Any]]) -> list[str]:
    lines = [f"== time per output token, {PROMPT} + {TOKENS} tokens, {ROUNDS} alternating rounds"]
    lines += [
        f"batch {row['batch']:>3}  {row['variant']:<12} {row['tpot_ms']:9.3f} ms   of stock's time "
        f"{row['ratio'][1]:.3f} ({row['ratio'][0]:.3f} to {row['ratio'][2]:.3f})"
        for row in rows
    ]
    lines.append("== the op alone")
    lines += [
        f"batch {row['batch']:>3}  {row['personas']:>3} personas  {row['microseconds']:8.2f} us a layer, "
        f"{row['bytes'] / 1024:.0f} KiB at {row['of_limit']:.0%} of a large copy's rate; all layers "
        f"{row['of_tpot']:.2%} of the time per token "
        f"({'within' if row['of_tpot'] <= _TARGET else 'BEYOND'} the target of {_TARGET:.0%})"
        for row in op
    ]
    return lines


class Engine:
    """An engine in a process of its own that runs a batch when told to."""

    def __init__(self, name: str, job_file: str) -> None:
        environment = dict(os.environ)
        if name == "stock":
            del environment["VLLM_PLUGINS"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, job_file, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._answer()

    def ask(self, question: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(question)}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
            sys.stdout.write(line)
        raise RuntimeError("an engine process ended; its messages are above")


def work(job: dict[str, Any], name: str) -> None:
    """The engine process: a batch for each line of stdin."""
    import torch
    from vllm import LLM, SamplingParams

    from vllm_palign.selection import persona_args

    options = Subject(**job["subject"]).engine_options()
    shape, vocabulary, _ = model_shape(options)
    options |= {
        "max_num_seqs": PERSONAS,
        "max_model_len": PROMPT + TOKENS,
        "enable_prefix_caching": False,
        "enforce_eager": job["eager"],
    }
    if torch.cuda.is_available():
        options["gpu_memory_utilization"] = 0.42  # two engines share the device
    names = [f"p{index}" for index in range(PERSONAS)]
    with tempfile.TemporaryDirectory() as folder:
        if name == "palign":
            personas = write_personas(Path(folder), names, shape)
            options["additional_config"] = {"palign": {"personas": personas}}
        llm = LLM(**options)
    _reply(None)
    for line in sys.stdin:
        question = json.loads(line)
        if "op" in question:
            (answer,) = llm.collective_rpc(_op)
            _reply(answer)
            continue
        distinct = question["personas"]
        params = [
            SamplingParams(
                temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False,
                extra_args=persona_args(names[row % distinct]) if distinct else None,
            )
            for row in range(question["batch"])
        ]  # fmt: skip
        prompts: Any = [
            {"prompt_token_ids": prompt(row, PROMPT, vocabulary)}
            for row in range(question["batch"])
        ]
        spans = [
            output.metrics.last_token_ts - output.metrics.first_token_ts
            for output in llm.generate(prompts, params, use_tqdm=False)
            if output.metrics is not None
        ]
        _reply(statistics.median(spans) / (TOKENS - 1))


def _op(worker: Any) -> tuple[int, list[dict[str, float]]]:
    """Runs in the worker."""
    from vllm_palign.verify.op import op_times

    worker = getattr(worker, "worker", worker)
    bank = worker.palign_bank
    return len(bank.shape.layers), op_times(bank.shape, bank.rows.dtype, bank.rows.device, BATCHES)


def _reply(answer: Any) -> None:
    # vLLM logs to stdout too, perhaps without ending the line.
    print(f"\nRESULT {json.dumps(answer)}", flush=True)  # noqa: T201


def main() -> None:
    job_file, target = sys.argv[1:3]
    if target in ("stock", "palign"):
        work(json.loads(Path(job_file).read_text()), target)
        return
    try:
        result = compare(job_file)
    except RuntimeError as error:
        result = {"error": str(error)}
    Path(target).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
