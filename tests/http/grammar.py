"""What a JSON schema lets the reference method say: vLLM's grammar library, on plain Hugging Face's numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import xgrammar


class Grammar:
    """``schema`` without a choice of blanks (``disable_any_whitespace``)."""

    def __init__(self, schema: dict[str, Any], tokenizer: Any, vocab_size: int) -> None:
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
        self._compiled = xgrammar.GrammarCompiler(info).compile_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(",", ":")
        )
        self._vocab_size = vocab_size

    def mask(self, answer: Sequence[int]) -> torch.Tensor:
        """[T, V]: 0 where a token is allowed in the place of one of ``answer``, else -inf. ``answer`` must be
        a whole sentence of the grammar, its end included."""
        matcher = xgrammar.GrammarMatcher(self._compiled)
        bits = xgrammar.allocate_token_bitmask(1, self._vocab_size)
        rows = torch.zeros(len(answer), self._vocab_size)
        for row, token in zip(rows, answer, strict=True):
            matcher.fill_next_token_bitmask(bits)
            xgrammar.apply_token_bitmask_inplace(row[None], bits)
            assert matcher.accept_token(token)
        assert matcher.is_terminated()
        return rows
