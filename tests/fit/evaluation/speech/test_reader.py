from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from palign_fit.evaluation.speech import reader as rd
from palign_fit.inputs.traits import ADJECTIVES
from palign_fit.model.cache import Cache
from palign_fit.model.prompts import chat_prefix, continuation

from vllm_palign.directions.traits import TRAITS


def no_tick(count: int, /, *, free: bool = False) -> None:
    """Nobody listens."""


def test_odds_of_a_batch_are_those_of_each_answer_alone(tiny: Any) -> None:
    reader = rd.WordReader(tiny, Cache(None))
    pairs = [
        ("What is it like?", "I enjoy long walks."),
        ("What is it like?", "I am shy and quiet"),
        ("What is it like?", "I"),
        ("Do I worry?", "I am calm."),
        ("What is it like?", "I am shy and quiet"),
    ]
    ticks: list[int] = []
    got = reader.read(pairs, lambda count, /, *, free=False: ticks.append(count))
    assert got.shape == (5, 5) and sum(ticks) == 5
    np.testing.assert_allclose(got[1], got[4], atol=1e-5)
    for line, (question, answer) in zip(got, pairs, strict=True):
        text = (
            f'Someone was asked: "{question}"\nThey answered: "{answer}"\n'
            "Describe this person in one word."
        )
        ids = [
            *chat_prefix(tiny.tokenizer, text),
            *continuation(tiny.tokenizer, "This person is"),
        ]
        with torch.no_grad():
            odds = tiny.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        for score, (high, low) in zip(line, reader.words, strict=True):
            assert score == pytest.approx(
                float((odds[high].sum() / odds[low].sum()).log()), abs=1e-4
            )


def test_only_tokens_that_tell_of_one_pole_count(tiny: Any) -> None:
    tokenizer = tiny.tokenizer
    words = rd.trait_words(tokenizer)
    every = [token for poles in words for pole in poles for token in pole]
    assert len(every) == len(set(every)) and tokenizer.unk_token_id not in every
    said = tokenizer.convert_ids_to_tokens(words[TRAITS.index("E")][1])
    assert (
        {"shy", "quiet"}
        <= set(said)
        <= {w for text in ADJECTIVES["E"][1].split(", ") for w in text.replace("-", " ").split()}
    )
    # "self-disciplined" and "self-assured" begin alike, and say nothing by it.
    assert tokenizer.convert_tokens_to_ids("self") not in every


def test_a_beginning_counts_that_is_long_and_nobodys_whole_word() -> None:
    class Pieces:
        """Whole words of its own, five letters of others; one letter of those on "a"."""

        chat_template = "x"
        unk_token_id = None
        names = ("This", "person", "is", "bold", "quiet", "careless")

        def __init__(self) -> None:
            self.seen = list(self.names)

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            pieces = []
            for word in text.split():
                size = 1 if word.startswith("a") else 5
                pieces += [word] if word in self.names else [word[:size], "rest"]
            self.seen += [one for one in pieces if one not in self.seen]
            return {"input_ids": [self.seen.index(one) for one in pieces]}

        def decode(self, ids: list[int]) -> str:
            return " " + self.seen[ids[0]]

    tokenizer = Pieces()
    found = [
        [[tokenizer.seen[one] for one in pole] for pole in poles]
        for poles in rd.trait_words(tokenizer)
    ]
    high, low = found[TRAITS.index("E")]
    assert {"bold", "talka"} <= set(high) and {"quiet", "reser"} <= set(low)
    assert "careless" in found[TRAITS.index("C")][1]
    every = [one for poles in found for pole in poles for one in pole]
    # "anxious" begins with one letter here, as do others.
    assert min(map(len, every)) > 3 and "a" not in every


def test_ratings_are_five_numbers_or_nothing() -> None:
    assert rd.ratings("7, 5, 3, 9, 1") == [7, 5, 3, 9, 1]
    for reply in ("", "O is 7", "1, 2, 3, 4", "1, 2, 3, 4, 10", "1 2 3 4 5 6"):
        assert np.isnan(rd.ratings(reply)).all()
