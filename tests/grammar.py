"""Structured output as vLLM's default backend masks it, for the reference method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import xgrammar

from tests.oracle import steered
from vllm_palign import Persona


def compile_schema(schema: str, tokenizer: Any, vocab_size: int) -> xgrammar.CompiledGrammar:
    """JSON ``schema`` without freedom of whitespace (``disable_any_whitespace``)."""
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
    return xgrammar.GrammarCompiler(info).compile_json_schema(schema, any_whitespace=False)


def greedy(
    model: Any,
    grammar: xgrammar.CompiledGrammar,
    prompt: Sequence[int],
    parts: Sequence[tuple[Persona, float]],
) -> list[int]:
    """The likeliest token that ``grammar`` allows, again and again, until the end; the end itself left out."""
    matcher = xgrammar.GrammarMatcher(grammar)
    mask = xgrammar.allocate_token_bitmask(1, model.config.vocab_size)
    tokens: list[int] = []
    with torch.inference_mode(), steered(model, parts):
        while True:
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[:, -1].clone()
            matcher.fill_next_token_bitmask(mask)
            xgrammar.apply_token_bitmask_inplace(logits, mask)
            token = int(logits.argmax())
            matcher.accept_token(token)
            if matcher.is_terminated():
                return tokens
            tokens.append(token)
