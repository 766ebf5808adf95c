"""Whether an answer is the one that plain Hugging Face gives, shown as vLLM's detokenizer shows it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.detokenizer import Detokenizer
from tests.oracle import continuation, greedy, table
from tests.soak.questions import Piece
from tests.soak.tally import Tally, Wrong
from vllm_palign import Persona
from vllm_palign.persona import Scope

TOLERANCE = 1e-4
"""Of log-probabilities in float32. A token within it of the likeliest one is a tie, and right."""

Parts = Sequence[tuple[Persona, float]]
"""(persona, strength x weight) each."""


def first_steered(scope: Scope, prompt: Sequence[int]) -> int:
    """The index of the first token that is steered, of a request without an earlier answer."""
    return 0 if scope == "all" else len(prompt) - 1


Tokens = list[tuple[int, float | None]]
"""(token id, log-probability) each; None: not shown."""


@dataclass(frozen=True)
class Case:
    """What is known of an answer that leaves tokens out."""

    prompt: Sequence[int]
    parts: Parts
    start: int
    """The first token that they steer."""
    count: int
    """Tokens that the model was to generate."""
    left: bool
    """The client did not wait for all of them."""


class Judge:
    """One at a time in a thread, because the reference is steered by changing its biases."""

    def __init__(self, model: Path, tally: Tally) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._detokenizer = Detokenizer(model, skip_special_tokens=False)
        self._tally = tally
        self._thread = ThreadPoolExecutor(1, "judge")

    async def check(
        self, prompt: Sequence[int], pieces: Sequence[Piece], parts: Parts, scope: Scope = "answers"
    ) -> None:
        """For answers that show every token. Raises Wrong."""
        tokens: Tokens = [token for piece in pieces for token in piece.tokens]

        def judge() -> None:
            self._check_likeliest(prompt, tokens, parts, first_steered(scope, prompt))
            texts = self._detokenizer.texts(prompt, [token for token, _ in tokens])
            at = 0
            for piece in pieces:
                end = at + len(piece.tokens)
                if piece.text != "".join(texts[at:end]):
                    raise Wrong(f"{piece} is shown; the detokenizer makes {texts[at:end]} of it")
                at = end

        await asyncio.get_running_loop().run_in_executor(self._thread, judge)

    async def check_with_gaps(
        self,
        prompt: Sequence[int],
        pieces: Sequence[Piece],
        parts: Parts,
        count: int,
        left: bool = False,
        scope: Scope = "answers",
    ) -> int:
        """For answers of which only pieces with text are shown: the ``count`` likeliest tokens, or as many of
        them as the client waited for, leave exactly ``pieces``. How many are not shown. Raises Wrong."""
        start = first_steered(scope, prompt)
        case = Case(prompt, parts, start, count, left)

        def judge() -> int:
            tokens = self._explain(case, [], pieces)
            if tokens is None:
                whole = continuation(self.model, prompt, count, parts, start)
                texts = self._detokenizer.texts(prompt, whole)
                shown = list(pieces) or "nothing"
                raise Wrong(f"{shown} is shown of {whole}, whose texts are {texts}")
            self._check_likeliest(prompt, tokens, parts, start)
            return sum(logprob is None for _, logprob in tokens)

        return await asyncio.get_running_loop().run_in_executor(self._thread, judge)

    def _check_likeliest(
        self, prompt: Sequence[int], tokens: Tokens, parts: Parts, start: int
    ) -> None:
        if not tokens:
            return
        ids = [token for token, _ in tokens]
        own, best = greedy(self.model, prompt, ids, parts, start)
        shown = np.array([logprob is not None for _, logprob in tokens])
        said = np.array([logprob for _, logprob in tokens], dtype=float)
        off = np.where(shown, np.abs(said - own), 0.0)
        self._tally.tokens += int(shown.sum())
        self._tally.worst = max(self._tally.worst, float(off.max()))
        # Said so that a log-probability that is no number is wrong.
        if not (np.maximum(best - own, off) <= TOLERANCE).all():
            at = int(np.argmax(np.maximum(best - own, off)))
            raise Wrong(
                f"token {at} of {len(ids)} is {ids[at]} with log-probability {said[at]:.5f}; "
                f"the reference gives it {own[at]:.5f} and its best token {best[at]:.5f}"
            )

    def _explain(self, case: Case, seen: Tokens, pieces: Sequence[Piece]) -> Tokens | None:
        """``seen`` and tokens after it, the likeliest at each place, of which ``pieces`` are what is shown.

        Whether a token without text comes alone, and is left out, or in one piece with its neighbours, is
        a matter of how fast the client reads.
        """
        if not pieces and (case.left or len(seen) == case.count):
            return seen
        if len(seen) == case.count:
            return None
        ids = [token for token, _ in seen]
        if pieces and self._comes_next(case, ids, pieces[0]):
            tokens = self._explain(case, [*seen, *pieces[0].tokens], pieces[1:])
            if tokens is not None:
                return tokens
        tokens_so_far = [*case.prompt, *ids, 0]
        row = table(self.model, tokens_so_far, case.parts, last=1, start=case.start)[0]
        for token in np.flatnonzero(row >= row.max() - TOLERANCE).tolist():
            if not self._detokenizer.texts(case.prompt, [*ids, token])[-1]:
                tokens = self._explain(case, [*seen, (token, None)], pieces)
                if tokens is not None:
                    return tokens
        return None

    def _comes_next(self, case: Case, seen: list[int], piece: Piece) -> bool:
        ids = [token for token, _ in piece.tokens]
        if not piece.text or len(seen) + len(ids) > case.count:
            return False
        texts = self._detokenizer.texts(case.prompt, [*seen, *ids])[len(seen) :]
        if piece.text != "".join(texts):
            return False
        own, best = greedy(self.model, [*case.prompt, *seen], ids, case.parts, case.start)
        return bool((best - own <= TOLERANCE).all())
