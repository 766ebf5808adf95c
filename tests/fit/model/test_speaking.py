"""Many answers at once are what each would be alone, computed without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from palign_fit.model.rows import Dose, Rows
from palign_fit.model.speaking import Line, Speaker, conversations

from vllm_palign.persona import Persona

COUNT = 12


def persona(seed: int, tiny: Any) -> Persona:
    rng = np.random.default_rng(seed)
    return Persona(
        name=f"p{seed}",
        layers=np.array([0, 1, 1], np.int32),
        heads=np.array([1, 0, 3], np.int32),
        offsets=rng.normal(size=(3, tiny.head_dim)).astype(np.float32),
        alpha=2.0,
        base_model="tiny-fit",
        num_layers=tiny.num_layers,
        num_heads=tiny.num_heads,
        head_dim=tiny.head_dim,
        fit={},
    )


def alone(tiny: Any, tokens: Sequence[int], dose: Any, start: int) -> torch.Tensor:
    """Logits [T, V] of one text, its tokens from ``start`` on steered."""
    handles = []
    someone, strength = dose
    for layer, module in enumerate(tiny.projections):
        moved_by = np.zeros((tiny.num_heads, tiny.head_dim), np.float32)
        for k in range(3 if someone else 0):
            if someone.layers[k] == layer:
                moved_by[someone.heads[k]] = strength * someone.alpha * someone.offsets[k]
        row = torch.from_numpy(moved_by.flatten())

        def add(_: Any, args: Any, row: torch.Tensor = row) -> Any:
            moved = args[0].clone()
            moved[:, start:] += row
            return (moved,)

        handles.append(module.register_forward_pre_hook(add))
    try:
        with torch.no_grad():
            logits: torch.Tensor = tiny.model(torch.tensor([list(tokens)]), use_cache=False).logits[
                0
            ]
            return logits
    finally:
        for handle in handles:
            handle.remove()


def answered(tiny: Any, prompt: Sequence[int], dose: Any, start: int) -> list[int]:
    said: list[int] = []
    while len(said) < COUNT:
        token = int(alone(tiny, [*prompt, *said], dose, start)[-1].argmax())
        if token == tiny.tokenizer.eos_token_id:
            break
        said.append(token)
    return said


@pytest.fixture(scope="module")
def prompts(tiny: Any) -> list[tuple[int, ...]]:
    """Two lengths; some begin alike."""
    rng = np.random.default_rng(0)
    lead = rng.integers(4, 90, 11).tolist()
    return [tuple(lead + rng.integers(4, 90, n).tolist()) for n in (5, 5, 2, 9)]


@pytest.mark.parametrize("whole", [False, True])
def test_a_batch_of_people_and_questions_is_answered_as_each_alone(
    whole: bool, tiny: Any, prompts: list[tuple[int, ...]]
) -> None:
    doses: list[Dose] = [(None, 0.0), (persona(1, tiny), 1.0), (persona(2, tiny), -0.5)]
    lines = [Line(prompt, dose, whole) for dose in doses for prompt in prompts]
    ticks: list[int] = []
    speaker = Speaker(tiny)
    got = speaker.answers(lines, COUNT, lambda n, /, *, free=False: ticks.append(n))
    for line, said in zip(lines, got, strict=True):
        start = 0 if whole else len(line.prompt) - 1
        assert said == answered(tiny, line.prompt, line.dose, start)
    assert sum(ticks) == len(lines)
    assert len({tuple(said) for said in got}) > len(prompts)
    again = speaker.answers(lines[::-1], COUNT, lambda n, /, *, free=False: None)
    assert again[::-1] == got


def test_a_conversation_goes_on_as_if_it_were_read_anew(
    tiny: Any, prompts: list[tuple[int, ...]]
) -> None:
    doses: list[Dose] = [(None, 0.0), (persona(1, tiny), 1.0), (persona(2, tiny), 1.0)]
    firsts = [Line(prompt, dose) for dose in doses for prompt in prompts[:2]]
    later = [prompts[2][-4:], prompts[3][-7:], prompts[0][-3:]]
    got = conversations(
        tiny, firsts, [later] * len(firsts), COUNT, lambda n, /, *, free=False: None
    )
    for line, answers in zip(firsts, got, strict=True):
        assert len(answers) == len(later) + 1
        tokens = list(line.prompt)
        for said, following in zip(answers, [*later, ()], strict=True):
            assert said == answered(tiny, tokens, line.dose, len(line.prompt) - 1)
            tokens += [*said, *following]


def test_rows_are_chosen_without_touching_the_others(
    tiny: Any, prompts: list[tuple[int, ...]]
) -> None:
    rows = Rows.of(tiny, [prompts[0], prompts[3], prompts[0]])
    chosen = rows.select([1, 1, 0])
    chosen.put([prompts[2][:3]] * 3)
    width = rows.real.shape[1]
    logits = rows.put([prompts[2][:2], prompts[2][:1], prompts[2][:2]], keep=2)
    assert rows.real.shape[1] == width + 2 and chosen.real.shape[1] == width + 3
    wanted = alone(tiny, [*prompts[3], prompts[2][0]], (None, 0.0), 0)[-1]
    torch.testing.assert_close(logits[1, -1], wanted, atol=1e-4, rtol=1e-4)
    wanted = alone(tiny, [*prompts[0], *prompts[2][:2]], (None, 0.0), 0)[-2:]
    torch.testing.assert_close(logits[2], wanted, atol=1e-4, rtol=1e-4)
