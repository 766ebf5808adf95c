"""Structured output as vLLM's default backend masks it, for the reference method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import xgrammar

from tests.oracle import steered
from vllm_palign import Persona


def greedy(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    schema: str,
    parts: Sequence[tuple[Persona, float]],
    limit: int,
) -> str:
    """The text of the likeliest token allowed by JSON ``schema``, again and again, until the end."""
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=model.config.vocab_size)
    grammar = xgrammar.GrammarCompiler(info).compile_json_schema(schema, any_whitespace=False)
    matcher = xgrammar.GrammarMatcher(grammar)
    mask = xgrammar.allocate_token_bitmask(1, model.config.vocab_size)
    tokens: list[int] = []
    with torch.inference_mode(), steered(model, parts):
        while len(tokens) < limit:
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[:, -1].clone()
            matcher.fill_next_token_bitmask(mask)
            xgrammar.apply_token_bitmask_inplace(logits, mask)
            token = int(logits.argmax())
            matcher.accept_token(token)
            if matcher.is_terminated():
                break
            tokens.append(token)
    return str(tokenizer.decode(tokens))
