"""Steering a batch row by row, against passes that are steered whole."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from palign_fit.errors import FitError, InputError
from palign_fit.model.rows import Rows
from palign_fit.model.steer import stacked, steered, steered_by

from tests.fit.model.test_model import persona

PROMPTS = [[5, 9, 11, 40, 7, 12, 30], [6, 8, 21, 13]]
STEPS = 12


def logits(tiny: Any, tokens: list[int], cache: Any = None) -> tuple[Any, Any]:
    """float32 [T, V] of one text, and the cache that has it."""
    import torch

    with torch.no_grad():
        out = tiny.model(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
    return out.logits[0], out.past_key_values


def two_steps(tiny: Any, prompt: list[int], one: Any, strength: float) -> list[int]:
    """The greedy answer of a prompt that is read plainly but for its last token, and steered from there."""
    _, cache = logits(tiny, prompt[:-1])
    said: list[int] = []
    with steered(tiny, one, strength):
        following = prompt[-1:]
        while len(said) < STEPS:
            out, cache = logits(tiny, following, cache)
            said.append(int(out[-1].argmax()))
            following = said[-1:]
    return said


def generated(tiny: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Greedy answers of a batch that is padded on the left, STEPS tokens each."""
    import torch

    longest = max(map(len, prompts))
    out = tiny.model.generate(
        input_ids=torch.tensor([[0] * (longest - len(one)) + one for one in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts]),
        do_sample=False, max_new_tokens=STEPS, min_new_tokens=STEPS, pad_token_id=0, eos_token_id=None, **options,
    )  # fmt: skip
    return [[int(token) for token in row] for row in out[:, longest:].tolist()]


def test_rows_of_one_batch_have_their_own_person_and_strength(tiny: Any) -> None:
    ann, ben = persona(0), persona(1)
    doses = [(ann, 1.0), (None, 1.0), (ben, -0.5), (ann, 0.0), (ann, 2.0)]
    rows = Rows.of(tiny, [PROMPTS[0][:-1]] * len(doses))
    rows.steer(doses)
    got, following = [[] for _ in doses], [PROMPTS[0][-1:]] * len(doses)
    for _ in range(STEPS):
        following = [[int(token)] for token in rows.put(following)[:, -1].argmax(-1)]
        for said, token in zip(got, following, strict=True):
            said += token
    plain = two_steps(tiny, PROMPTS[0], ann, 0.0)
    assert got[1] == plain and got[3] == plain
    for row in (0, 2, 4):
        one, strength = doses[row]
        assert got[row] == two_steps(tiny, PROMPTS[0], one, strength)
    assert len(set(map(tuple, got))) == 4


def test_strength_zero_and_nobody_are_plain_to_the_last_bit(tiny: Any) -> None:
    plain, _ = logits(tiny, PROMPTS[0])
    with steered(tiny, persona(), 0.0):
        assert (logits(tiny, PROMPTS[0])[0] == plain).all()
    for dose in ((persona(), 0.0), (None, 1.0)):
        with steered_by(tiny, *stacked(tiny, [dose])):
            assert (logits(tiny, PROMPTS[0])[0] == plain).all()


def test_hooks_of_rows_are_gone_after_an_error_inside_the_block(tiny: Any) -> None:
    with pytest.raises(RuntimeError), steered_by(tiny, *stacked(tiny, [(persona(), 1.0)])):
        raise RuntimeError
    assert not any(module._forward_pre_hooks for module in tiny.projections)


def test_a_batch_of_another_size_and_a_persona_of_another_geometry_are_refused(tiny: Any) -> None:
    import torch

    two = stacked(tiny, [(persona(), 1.0)] * 2)
    with (
        steered_by(tiny, *two),
        pytest.raises(FitError, match=re.escape("wanted [2 rows, tokens, width]")),
    ):
        tiny.model(torch.tensor([PROMPTS[0]] * 3))
    with pytest.raises(InputError, match="fit it on this model"):
        stacked(tiny, [(None, 1.0), (persona(head_dim=8), 1.0)])


def test_added_may_be_one_for_all_rows_or_one_of_each(tiny: Any) -> None:
    import torch

    one = persona()
    tokens = torch.tensor([PROMPTS[0]] * 2)
    scaled = one.alpha * one.offsets
    with torch.no_grad():
        with steered_by(tiny, one.layers, one.heads, scaled):
            alike = tiny.model(tokens).logits
        with steered_by(tiny, one.layers, one.heads, np.stack([scaled, scaled])):
            each = tiny.model(tokens).logits
    assert torch.equal(alike, each)
