"""What a model in this process says, against what a server would show of the same tokens."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from palign_fit.evaluation.huggingface import HuggingFaceBackend
from palign_fit.evaluation.tasks import Setting, Speech
from palign_fit.model import speaking
from palign_fit.model.model import open_model
from palign_fit.model.prompts import chat_prefix
from palign_fit.model.rows import Rows

from tests.detokenizer import Detokenizer

WORD, HALF, END = 10907, 12335, 2
"""A word; a blank and two bytes of three; the end of an answer."""


def test_an_answer_that_is_cut_off_within_a_character_ends_before_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(str(tiny_model), device="cpu")
    backend = HuggingFaceBackend(opened, 1.0)
    ends = speaking.ending_tokens(opened)
    shown = Detokenizer(tiny_model, skip_special_tokens=True)
    prompt = chat_prefix(opened.tokenizer, "How are you?")

    def said(answer: list[int]) -> str:
        tokens = iter(answer)

        def put(rows: Rows, texts: object, keep: int = 1) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.tensor([[next(tokens)]]), 49152)

        monkeypatch.setattr(Rows, "put", put)
        (text,) = backend.speak(
            [Speech(Setting(), "How are you?")], len(answer), lambda _, /, *, free=False: None
        )
        return text

    assert said([WORD, HALF, HALF]) == "ok"
    assert said([HALF, WORD, END]) == "\ufffd ok"
    assert said([HALF, HALF, END]) == ""
    rng = random.Random(0)
    for _ in range(200):
        pools = [[HALF], [END], range(100, 300), range(49152)]
        answer = [rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 9))]
        answer = answer[: next((n for n, one in enumerate(answer) if one in ends), 9)] or [WORD]
        assert said(answer) == "".join(shown.texts(prompt, answer)).strip()
