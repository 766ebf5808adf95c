"""One engine in a process of its own: what it answers, told as numbers for ``checks``.

    python -m vllm_palign.verify.engine JOB.json RESULT.json

The job is a ``Subject`` and ``compilation``: None for eager, else vLLM's ``compilation_config``. Decoding is
forced to fixed tokens, so that all runs compute the same positions; compared are the raw log-probs of
prompt tokens (from a prefill step) and of forced tokens (from decode steps).
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vllm_palign.selection import persona_args
from vllm_palign.verify.subjects import Subject, model_shape, prompt, write_personas

REQUESTS, PROMPT, DECODE = 4, 40, 12
CAPTURE_SIZES = [1, 2, REQUESTS, REQUESTS * PROMPT]
"""Token counts that occur, so that on a GPU prefill steps too are replayed from a graph."""
NAMES = ["alice", "bob", "carol", "dave", "erin", "frank"]
OFF = {"id": "alice", "strength": 0.0}
MIXED = ["alice", None, "bob", OFF]
BATCHES: dict[str, list[Any]] = {
    "plain": [None] * REQUESTS,
    "plain again": [None] * REQUESTS,
    "alice": ["alice"] * REQUESTS,
    "bob": ["bob"] * REQUESTS,
    "strength 0": [OFF] * REQUESTS,
    "mixed": MIXED,
    # As many as there are slots: alice and bob lose theirs.
    "others": ["carol", "dave", "erin", "frank"],
    "mixed again": MIXED,
    "carol": ["carol"] * REQUESTS,
}
"""Batch -> whom each request asks for. All have the same prompts, so request r differs in nothing else."""


@dataclass
class Observed:
    """``scores`` of each batch [REQUESTS][PROMPT - 1 + DECODE] log-probs; ``replays`` of CUDA graphs in it
    (None: no CUDA); ``cached`` prompt tokens that each request of the KV sequence found, with its
    ``kv_scores``; empty when the model cannot be asked."""

    environment: dict[str, Any]
    armed: dict[str, Any]
    scores: dict[str, list[list[float]]] = field(default_factory=dict)
    replays: dict[str, int | None] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)
    kv_scores: dict[str, list[float]] = field(default_factory=dict)


def observe(subject: Subject, compilation: dict[str, Any] | None) -> Observed:
    from vllm import LLM

    options = subject.engine_options()
    shape, vocabulary, longest = model_shape(options)
    options |= {"max_num_seqs": REQUESTS, "max_model_len": min(longest, 1024)}
    if compilation is None:
        options["enforce_eager"] = True
    elif compilation:
        options["compilation_config"] = compilation | {"cudagraph_capture_sizes": CAPTURE_SIZES}
    replays = _count_replays()
    with tempfile.TemporaryDirectory() as folder:
        personas = write_personas(Path(folder), NAMES, shape)
        llm = LLM(**options, additional_config={"palign": {"personas": personas}})
    (found,) = llm.collective_rpc(_inspect)
    observed = Observed(**found)
    prompts = [prompt(row, PROMPT, vocabulary) for row in range(REQUESTS)]
    for name, wishes in BATCHES.items():
        before = len(replays)
        observed.scores[name] = _ask(llm, prompts, wishes, prompt_scores=True)[0]
        observed.replays[name] = len(replays) - before if found["environment"]["cuda"] else None
    config = llm.llm_engine.vllm_config
    long = 2 * config.cache_config.block_size + 7
    if (
        config.cache_config.enable_prefix_caching
        and long + DECODE < config.model_config.max_model_len
    ):
        text = prompt(REQUESTS, long, vocabulary)
        for name, wish in KV_SEQUENCE.items():
            (scores,), (cached,) = _ask(llm, [text], [wish], prompt_scores=False)
            observed.kv_scores[name], observed.cached[name] = scores, cached
    return observed


KV_SEQUENCE: dict[str, Any] = {
    "alice first": "alice",
    "plain first": None,
    "bob first": "bob",
    "alice again": "alice",
    "plain again": None,
    "strength 0": OFF,
    "answers first": {"id": "alice", "scope": "answers"},
    "answers again": {"id": "alice", "scope": "answers"},
}
"""One long prompt asked in this order; request -> whom it asks for."""


def _ask(
    llm: Any, prompts: list[list[int]], wishes: list[Any], *, prompt_scores: bool
) -> tuple[list[list[float]], list[int]]:
    """Log-probs of every request's prompt tokens (if wanted) and forced tokens; cached prompt tokens."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0.0, max_tokens=DECODE, ignore_eos=True, detokenize=False, logprobs=0,
            prompt_logprobs=0 if prompt_scores else None, allowed_token_ids=[tokens[0]],
            extra_args=None if wish is None else persona_args(_everywhere(wish)),
        )
        for tokens, wish in zip(prompts, wishes, strict=True)
    ]  # fmt: skip
    outputs = llm.generate(
        [{"prompt_token_ids": tokens} for tokens in prompts], params, use_tqdm=False
    )
    scores = []
    for output, tokens in zip(outputs, prompts, strict=True):
        (answer,) = output.outputs
        steps = [*(output.prompt_logprobs or [None])[1:], *answer.logprobs]
        said = [*(tokens[1:] if prompt_scores else []), *answer.token_ids]
        scores.append([step[token].logprob for step, token in zip(steps, said, strict=True)])
    return scores, [output.num_cached_tokens or 0 for output in outputs]


def _everywhere(wish: Any) -> Any:
    """``wish``, on the prompt too unless it says otherwise: the prompt's log-probabilities are looked at."""
    return {"scope": "all", **(wish if isinstance(wish, dict) else {"id": wish})}


def _inspect(worker: Any) -> dict[str, Any]:
    """Runs in the worker: what it is, and what palign has armed there."""
    import torch
    import vllm

    worker = getattr(worker, "worker", worker)
    runner, bank, config = worker.model_runner, worker.palign_bank, worker.vllm_config
    cuda = torch.cuda.is_available() and worker.device.type == "cuda"
    compilation = config.compilation_config
    return {
        "environment": {
            "vllm": vllm.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda if cuda else None,
            "device": torch.cuda.get_device_name(worker.device) if cuda else worker.device.type,
            "model": config.model_config.model,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "runner": "V2" if hasattr(runner, "model_state") else "V1",
            "compilation": compilation.mode.name,
            "cudagraph_mode": compilation.cudagraph_mode.name,
        },
        "armed": {
            "layers": len(bank.shape.layers),
            "heads": bank.shape.num_heads,
            "slots": bank.shape.slots,
            "mib": round(bank.rows.nbytes / 2**20, 2),
        },
    }


def _count_replays() -> list[None]:
    """Grows by one for each replay of a CUDA graph in this process from now on."""
    import torch

    seen: list[None] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(self: Any) -> None:
        seen.append(None)
        replay(self)

    torch.cuda.CUDAGraph.replay = counted  # type: ignore[method-assign]
    return seen


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        result = asdict(observe(Subject(**job["subject"]), job["compilation"]))
    except Exception as error:
        # Whatever stops an engine is a finding, for the report.
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
