"""Steering from some token on and row by row, against passes that are steered whole."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from palign_fit.errors import FitError, InputError
from palign_fit.model.steer import steered, steered_by, steered_rows

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


@pytest.mark.parametrize("use_cache", [True, False])
def test_from_the_last_prompt_token_on_is_a_plain_prompt_and_a_steered_answer(
    tiny: Any, use_cache: bool
) -> None:
    one, last = persona(), max(map(len, PROMPTS)) - 1
    plain = generated(tiny, PROMPTS)
    with steered(tiny, one, 1.0, first=last):
        got = generated(tiny, PROMPTS, use_cache=use_cache)
    assert got == [two_steps(tiny, prompt, one, 1.0) for prompt in PROMPTS]
    assert got != plain
    with steered(tiny, one, 1.0):
        assert generated(tiny, PROMPTS) != got, "the prompt counts, where it is steered"


def test_rows_of_one_batch_have_their_own_person_and_strength(tiny: Any) -> None:
    ann, ben = persona(0), persona(1)
    rows = [(ann, 1.0), (None, 1.0), (ben, -0.5), (ann, 0.0), (ann, 2.0)]
    last = len(PROMPTS[0]) - 1
    with steered_rows(tiny, rows, first=last):
        got = generated(tiny, [PROMPTS[0]] * len(rows))
    plain = generated(tiny, PROMPTS[:1])[0]
    assert got[1] == plain and got[3] == plain
    for row in (0, 2, 4):
        one, strength = rows[row]
        assert got[row] == two_steps(tiny, PROMPTS[0], one, strength)
    assert len(set(map(tuple, got))) == 4


def test_strength_zero_is_plain_to_the_last_bit(tiny: Any) -> None:
    plain, _ = logits(tiny, PROMPTS[0])
    for first in (0, 3):
        with steered_rows(tiny, [(persona(), 0.0)], first=first):
            assert (logits(tiny, PROMPTS[0])[0] == plain).all()
    with steered_rows(tiny, [(None, 1.0)]):
        assert (logits(tiny, PROMPTS[0])[0] == plain).all()


def test_tokens_before_the_first_are_plain_to_the_last_bit_in_every_row(tiny: Any) -> None:
    import torch

    tokens = torch.tensor([PROMPTS[0]] * 3)
    with torch.no_grad():
        plain = tiny.model(tokens).logits
        with steered_rows(tiny, [(persona(), 1.0)] * 3, first=[2, 5, 7]):
            got = tiny.model(tokens).logits
    for row, first in enumerate((2, 5, 7)):
        assert (got[row, :first] == plain[row, :first]).all()
        assert (got[row, first:] != plain[row, first:]).any(-1).all()


def test_columns_count_on_in_a_cache_and_anew_without_one(tiny: Any) -> None:
    one, prompt = persona(), PROMPTS[0]
    with steered(tiny, one, first=4):
        whole, _ = logits(tiny, prompt)
        start, cache = logits(tiny, prompt[:2])
        rest, _ = logits(tiny, prompt[2:], cache)
        again, _ = logits(tiny, prompt)
    assert np.allclose(np.concatenate([start, rest]), whole, atol=1e-5)
    assert (again == whole).all()
    with steered(tiny, one):
        assert not np.allclose(logits(tiny, prompt)[0], whole, atol=1e-3)


def test_the_body_of_the_model_alone_is_steered_alike(tiny: Any) -> None:
    import torch

    tokens = torch.tensor(PROMPTS[:1])
    with torch.no_grad(), steered(tiny, persona(), first=4):
        whole = tiny.model(tokens, output_hidden_states=True).hidden_states[-1]
        assert (tiny.model.base_model(tokens).last_hidden_state == whole).all()


def test_hooks_of_rows_are_gone_after_an_error_inside_the_block(tiny: Any) -> None:
    with pytest.raises(RuntimeError), steered_rows(tiny, [(persona(), 1.0)], first=2):
        raise RuntimeError
    modules = (*tiny.projections, tiny.model.base_model)
    assert not any(module._forward_pre_hooks for module in modules)


def test_a_batch_of_another_size_and_a_persona_of_another_geometry_are_refused(tiny: Any) -> None:
    with (
        steered_rows(tiny, [(persona(), 1.0)] * 2, first=1),
        pytest.raises(FitError, match=re.escape("wanted [2 rows, tokens, width]")),
    ):
        generated(tiny, [PROMPTS[0]] * 3)
    with (
        pytest.raises(InputError, match="fit it on this model"),
        steered_rows(tiny, [(None, 1.0), (persona(head_dim=8), 1.0)]),
    ):
        pass


def test_added_may_be_one_for_all_rows_or_one_of_each(tiny: Any) -> None:
    import torch

    one = persona()
    tokens = torch.tensor([PROMPTS[0]] * 2)
    scaled = one.alpha * one.offsets
    with torch.no_grad():
        with steered_by(tiny, one.layers, one.heads, scaled, first=3):
            alike = tiny.model(tokens).logits
        with steered_by(tiny, one.layers, one.heads, np.stack([scaled, scaled]), first=3):
            each = tiny.model(tokens).logits
    assert torch.equal(alike, each)
