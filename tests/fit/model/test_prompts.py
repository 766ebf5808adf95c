"""What the model is shown depends on what was given, not on the day."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from palign_fit.inputs.pairs import Pair
from palign_fit.methods.pairs.data import tokenised
from palign_fit.model import prompts

DATED = (
    "{% if strftime_now is defined %}{{ strftime_now('%d %m %Y') }} {% endif %}"
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture
def dated(tiny: Any) -> Any:
    """A tokenizer whose template prints the date, digits among its words."""
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.chat_template = DATED
    tokenizer.add_tokens([f"{n:02d}" for n in range(32)] + [str(n) for n in range(2000, 2100)])
    return tokenizer


def test_a_template_that_prints_the_date_prints_the_same_on_any_day(dated: Any) -> None:
    pair = Pair((("user", "What are you like ?"),), "I talk.", "I listen.")
    for ids in (
        prompts.chat_prefix(dated, "What are you like ?"),
        tokenised(dated, pair).prefix,
        prompts.chat_prefix(dated, "What are you like ?", "You are kind."),
    ):
        assert dated.decode(list(ids)).split()[:3] == ["01", "01", "2025"]
