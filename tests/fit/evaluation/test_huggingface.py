"""What a model in this process says, against what a server would show of the same tokens."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from palign_fit.evaluation import texts
from palign_fit.evaluation.huggingface import HuggingFaceBackend
from palign_fit.evaluation.tasks import Setting, Speech
from palign_fit.model.model import open_model

from tests.detokenizer import Detokenizer

WORD, HALF, END = 10907, 12335, 2
"""A word; a blank and two bytes of three; the end of an answer."""


def test_an_answer_that_is_cut_off_within_a_character_ends_before_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(str(tiny_model), device="cpu")
    backend = HuggingFaceBackend(opened, 1.0)
    shown = Detokenizer(tiny_model, skip_special_tokens=True)
    prompt = texts.chat(opened.tokenizer, "How are you?", None)

    def said(answer: list[int]) -> str:
        def generate(input_ids: torch.Tensor, **_: object) -> torch.Tensor:
            return torch.cat([input_ids, torch.tensor([answer])], dim=1)

        monkeypatch.setattr(opened.model, "generate", generate)
        (text,) = backend.speak(
            [Speech(Setting(), "How are you?")], 9, lambda _, /, *, free=False: None
        )
        return text

    assert said([WORD, HALF, HALF]) == "ok"
    assert said([HALF, WORD, END]) == "\ufffd ok"
    assert said([HALF, HALF, END]) == ""
    rng = random.Random(0)
    for _ in range(200):
        pools = [[HALF], [END], range(100, 300), range(49152)]
        answer = [rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 9))]
        assert said(answer) == "".join(shown.texts(prompt, answer)).strip()
