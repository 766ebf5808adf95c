"""Prompt tokens are counted once, whatever vLLM makes of the request."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_palign.server.usage import Usage


def note(request_id: str, prompt: list[int], index: int = 0) -> None:
    """A state of vLLM's that has generated one token."""
    detokenizer: Any = SimpleNamespace(num_output_tokens=lambda: 1)
    Usage.note(
        SimpleNamespace(
            request_id=request_id, prompt_len=len(prompt), prompt_token_ids=prompt, request_index=index,
            detokenizer=detokenizer,
        )
    )  # fmt: skip


def search(prompt: list[int], width: int, number: int) -> list[tuple[str, list[list[int]]]]:
    """(step, prompts of its beams) of the three steps of a search, as vLLM makes them."""
    steps, beams = [], [prompt]
    for step in range(3):
        steps.append((f"{number}{step}" * 16, beams))
        beams = [[*beams[0], token] for token in range(width)]
    return steps


def note_all(*searches: list[tuple[str, list[list[int]]]]) -> None:
    """The steps of all searches of one request, turn by turn."""
    for turn in zip(*searches, strict=True):
        for step, beams in turn:
            for number, beam in enumerate(beams):
                note(f"cmpl-a-{step}-beam-{number}-0a1b2c3d", beam)


def test_the_beams_of_a_search_are_one_prompt() -> None:
    usage = Usage()
    note_all(search([7] * 10, 3, 1))
    assert usage.prompt == 10
    assert usage.generated == 7


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(
    "prompts", [([7] * 10, [8]), ([7] * 10, [7] * 10), ([7] * 9, [*[7] * 9, 0], [*[7] * 9, 0, 0])]
)
def test_prompts_that_are_searched_at_once_are_counted_each(
    prompts: tuple[list[int], ...], width: int
) -> None:
    """vLLM gives them one request's id; a prompt may even be another and what a beam would add to it."""
    usage = Usage()
    note_all(*(search(prompt, width, number) for number, prompt in enumerate(prompts)))
    assert usage.prompt == sum(map(len, prompts))


def test_samples_are_one_prompt_and_prompts_are_counted_each() -> None:
    usage = Usage()
    for prompt in (0, 1):
        for sample in (0, 1):
            note(f"{sample}_cmpl-a-{prompt}-0a1b2c3d", [7] * 10, index=sample)
    assert usage.prompt == 20


def test_an_id_of_a_client_that_looks_like_a_beam_saves_it_nothing() -> None:
    for given in ("-beam-0", "-beam"):
        usage = Usage()
        for prompt in range(3):
            note(f"cmpl-x-{'ab' * 16}{given}-{prompt}-0a1b2c3d", [7] * 10)
        assert usage.prompt == 30


def test_embeddings_under_an_id_that_looks_like_a_beam_are_counted() -> None:
    usage = Usage()
    state = SimpleNamespace(
        request_id="cmpl-x-ab-beam-0-0a1b2c3d", prompt_len=5, prompt_token_ids=None, request_index=0,
        detokenizer=None,
    )  # fmt: skip
    Usage.note(state)
    assert usage.prompt == 5


def test_a_search_of_many_steps_keeps_its_last_one_only() -> None:
    """Eight beams of 4,000 tokens are 256 KB for every token that is searched."""
    usage = Usage()
    beams = [list(range(4000))]
    tracemalloc.start()
    for step in range(200):
        for number, beam in enumerate(beams):
            note(f"cmpl-a-{step:032x}-beam-{number}-0a1b2c3d", beam)
        beams = [[*beams[0], token] for token in range(8)]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (usage.prompt, usage.generated) == (4000, 1 + 199 * 8)
    assert held < 2_000_000
