"""What the server shows of tokens, against what a decode of all of them shows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.detokenizer import Detokenizer

HALF = 12335
"""A blank and the first two of three bytes."""
SPECIAL = (0, 1, 2)


def test_a_token_that_ends_within_a_character_has_no_text_until_the_character_is_complete(
    demo_model: Path,
) -> None:
    words = AutoTokenizer.from_pretrained(demo_model)
    shown = Detokenizer(demo_model, skip_special_tokens=False)
    prompt, end = words("Hi")["input_ids"], words.convert_tokens_to_ids("®")
    assert words.decode([HALF] * 3) == " \ufffd \ufffd \ufffd"
    assert shown.texts(prompt, [HALF] * 3) == ["", "", ""]
    assert shown.texts(prompt, [HALF, end]) == ["", " म"]
    assert shown.texts(prompt, [HALF, HALF, end, HALF]) == ["", "", " \ufffd म", ""]


@pytest.mark.parametrize("skip", [True, False])
def test_what_is_shown_is_all_that_a_decode_shows_up_to_the_last_place_between_two_characters(
    demo_model: Path, skip: bool
) -> None:
    """Over thousands of sequences with bytes, halves of characters, special tokens and words."""
    words = AutoTokenizer.from_pretrained(demo_model)
    shown = Detokenizer(demo_model, skip_special_tokens=skip)
    rng = random.Random(f"{skip}")
    halves = [token for token in range(len(words)) if words.decode([token]).endswith("\ufffd")]

    def draw(count: int) -> list[int]:
        pools = [[HALF], halves, SPECIAL, range(len(words))]
        return [rng.choice(rng.choice(pools)) for _ in range(count)]

    def decode(tokens: list[int]) -> str:
        return words.decode(tokens, skip_special_tokens=skip)

    withheld = 0
    for _ in range(2000):
        # A prompt that ends within a character is vLLM's own affair.
        prompt, answer = [*draw(5), 3725], draw(rng.randint(1, 12))
        before, expected, text = decode(prompt), [], ""
        for at in range(len(answer)):
            whole = decode(prompt + answer[: at + 1]).removeprefix(before)
            new = "" if whole.endswith("\ufffd") else whole.removeprefix(text)
            expected.append(new)
            text += new
        assert shown.texts(prompt, answer) == expected
        withheld += text != decode(answer)
    assert 500 < withheld < 1500
