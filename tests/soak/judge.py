"""Whether an answer is the one that plain Hugging Face gives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tests.oracle import continuation, greedy
from tests.soak.tally import Tally, Wrong
from vllm_palign import Persona

TOLERANCE = 1e-4
"""Of log-probabilities in float32. A token within it of the likeliest one is a tie, and right."""

Tokens = Sequence[tuple[int, float]]
"""(token id, log-probability) each."""


class Judge:
    """One at a time in a thread, because the reference is steered by changing its biases."""

    def __init__(self, model: Path, tally: Tally) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._words = AutoTokenizer.from_pretrained(model)
        self._tally = tally
        self._thread = ThreadPoolExecutor(1, "judge")

    async def check_with_gaps(
        self,
        prompt: Sequence[int],
        answer: Tokens,
        parts: Sequence[tuple[Persona, float]],
        count: int,
    ) -> None:
        """For answers whose tokens without text are not shown: the reference's own ``count`` tokens, of
        which ``answer`` must be all but some, and some of them unless all are half characters. Raises Wrong."""
        loop = asyncio.get_running_loop()
        whole = await loop.run_in_executor(
            self._thread, lambda: continuation(self.model, prompt, count, parts)
        )
        if not answer and self._words.decode(whole).strip("\ufffd"):
            raise Wrong(f"nothing is shown of {whole}, which have text")
        rest = iter(whole)
        if not all(token in rest for token, _ in answer):
            raise Wrong(f"{[token for token, _ in answer]} are not among {whole}, in this order")

    async def check(
        self, prompt: Sequence[int], answer: Tokens, parts: Sequence[tuple[Persona, float]]
    ) -> None:
        """``parts`` are (persona, strength x weight). Raises Wrong."""
        ids = [token for token, _ in answer]
        loop = asyncio.get_running_loop()
        own, best = await loop.run_in_executor(
            self._thread, lambda: greedy(self.model, prompt, ids, parts)
        )
        said = np.array([logprob for _, logprob in answer])
        off = np.abs(said - own)
        self._tally.tokens += len(ids)
        self._tally.worst = max(self._tally.worst, float(off.max()))
        if (best - own).max() > TOLERANCE or off.max() > TOLERANCE:
            at = int(np.argmax(np.maximum(best - own, off)))
            raise Wrong(
                f"token {at} of {len(ids)} is {ids[at]} with log-probability {said[at]:.5f}; "
                f"the reference gives it {own[at]:.5f} and its best token {best[at]:.5f}"
            )
