"""Prompt tokens are counted once, whatever vLLM makes of the request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm_palign.server.usage import Usage


def note(request_id: str, prompt: int, generated: int = 1, index: int = 0) -> None:
    def count() -> int:
        return generated

    detokenizer: Any = SimpleNamespace(num_output_tokens=count)
    Usage.note(
        SimpleNamespace(request_id=request_id, prompt_len=prompt, request_index=index, detokenizer=detokenizer)
    )  # fmt: skip


def test_the_beams_of_a_search_are_one_prompt() -> None:
    usage = Usage()
    step = "0123456789abcdef" * 2
    for number in range(4):
        for beam in range(1 if not number else 3):
            note(f"chatcmpl-a-{step}-beam-{beam}-0a1b2c3d", prompt=10 + number)
    assert usage.prompt == 10
    assert usage.generated == 10


def test_two_prompts_that_are_searched_are_two() -> None:
    usage = Usage()
    for prompt in (0, 1):
        for number in range(3):
            note(f"cmpl-a-{prompt}-{'ab' * 16}-beam-0", prompt=10 + number)
    assert usage.prompt == 20


def test_samples_are_one_prompt_and_prompts_are_counted_each() -> None:
    usage = Usage()
    for prompt in (0, 1):
        for sample in (0, 1):
            note(f"{sample}_cmpl-a-{prompt}-0a1b2c3d", prompt=10, index=sample)
    assert usage.prompt == 20


def test_an_id_of_a_client_that_looks_like_a_beam_saves_it_nothing() -> None:
    usage = Usage()
    for prompt in range(3):
        note(f"cmpl-x-{'ab' * 16}-beam-0-{prompt}-0a1b2c3d", prompt=10)
    assert usage.prompt == 30
