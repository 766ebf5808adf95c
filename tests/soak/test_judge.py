"""The soak's judge: right answers of all kinds pass, and whatever is shown wrongly does not."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from tests.soak.judge import TOLERANCE, Judge
from tests.soak.questions import Piece, joined
from tests.soak.tally import Tally, Wrong

PROMPT = [11, 222, 3333, 44]
VOCABULARY = 49152
WORD, SPECIAL = 10907, 1
HALF, REST = 12335, 118
"""A blank and two bytes of three, and the third: " न"."""
OTHER_HALF = 459
FACE = (10813, 242, 218)
"""One character in three tokens."""


class Script:
    """A language model for which, after ``prompt``, each token of ``answer`` is the likeliest in its turn, and
    0 after anything else."""

    def __init__(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        self._whole = [*prompt, *answer]

    def __call__(self, ids: torch.Tensor, *, use_cache: bool, logits_to_keep: int) -> Any:
        told = ids[0].tolist()
        logits = torch.zeros(1, logits_to_keep, VOCABULARY)
        for row, end in enumerate(range(len(told) - logits_to_keep + 1, len(told) + 1)):
            as_told = told[:end] == self._whole[:end] and end < len(self._whole)
            logits[0, row, self._whole[end] if as_told else 0] = LOGIT
        return SimpleNamespace(logits=logits)


LOGIT = 20.0
LOGPROB = LOGIT - math.log(math.exp(LOGIT) + VOCABULARY - 1)


def said(text: str, *tokens: int) -> Piece:
    return Piece([(token, LOGPROB) for token in tokens], text)


@pytest.fixture(scope="module")
def tiny_judge(tiny_model: Path) -> Judge:
    return Judge(tiny_model, Tally())


Judging = Callable[..., int | None]


@pytest.fixture
def judge(tiny_judge: Judge, monkeypatch: pytest.MonkeyPatch) -> Judging:
    """``judge(answer, pieces)`` where the model says ``answer``."""

    def judge(
        answer: Sequence[int],
        pieces: Sequence[Piece],
        gaps: bool = True,
        left: bool = False,
        prompt: Sequence[int] = PROMPT,
    ) -> int | None:
        monkeypatch.setattr(tiny_judge, "model", Script(prompt, answer))
        if gaps:
            count = len(answer)
            return asyncio.run(tiny_judge.check_with_gaps(prompt, pieces, [], count, left))
        return asyncio.run(tiny_judge.check(prompt, pieces, []))

    return judge


RIGHT: dict[str, tuple[list[int], list[Piece]]] = {
    "no token has text": ([HALF] * 12, []),
    "a character's bytes, not all of them": ([*FACE[:2]], []),
    "the end has no text": ([WORD, HALF], [said(" ok", WORD)]),
    "the last character is cut off": ([WORD, *FACE[:2]], [said(" ok", WORD)]),
    "whoever completes a character shows it": ([HALF, REST, WORD], [said(" न", REST), said(" ok", WORD)]),
    "half a character and its rest at once": ([HALF, REST], [said(" न", HALF, REST)]),
    "a word shows the half before it": ([HALF, WORD], [said(" \ufffd ok", WORD)]),
    "halves shown with their neighbours": (
        [WORD, HALF, HALF, HALF, WORD], [said(" ok", WORD, HALF), said(" \ufffd \ufffd \ufffd ok", HALF, WORD)]
    ),
    "a beginning within a character": ([REST, WORD], [said("\ufffd ok", WORD)]),
    "a special token": ([SPECIAL, HALF, SPECIAL], [said("<|im_start|>", SPECIAL), said(" \ufffd<|im_start|>", SPECIAL)]),
    "all at once": ([WORD, HALF, WORD, HALF], [said(" ok \ufffd ok", WORD, HALF, WORD, HALF)]),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_a_right_answer_with_tokens_left_out_is_right(judge: Judging, case: str) -> None:
    answer, pieces = RIGHT[case]
    assert judge(answer, pieces) == len(answer) - len(joined(pieces).tokens)


WRONG: dict[str, tuple[list[int], list[Piece]]] = {
    "nothing of a word": ([HALF, WORD, HALF], []),
    "nothing of a special token": ([SPECIAL], []),
    "nothing of a character that is complete": ([HALF, REST], []),
    "not the first word": ([WORD, WORD], [said(" ok", WORD)]),
    "not the last character": ([WORD, HALF, REST], [said(" ok", WORD)]),
    "the end that is withheld": ([WORD, HALF], [said(" ok", WORD), said(" \ufffd", HALF)]),
    "the end that is withheld, in one piece": ([WORD, HALF], [said(" ok \ufffd", WORD, HALF)]),
    "the end that is withheld, without text": ([WORD, HALF], [said(" ok", WORD), said("", HALF)]),
    "half a character too early": ([WORD, HALF, WORD], [said(" ok \ufffd", WORD, HALF), said(" ok", WORD)]),
    "no sign of the half before a word": ([HALF, WORD], [said(" ok", WORD)]),
    "a token left out within a piece": ([WORD, HALF, WORD], [said(" ok \ufffd ok", WORD, WORD)]),
    "text without tokens": ([WORD, HALF], [said(" ok")]),
    "a word more": ([WORD, HALF], [said(" ok", WORD), said(" ok", WORD)]),
    "another word": ([HALF, HALF, WORD], [said(" \ufffd \ufffd ok", 28)]),
    "another text": ([HALF, HALF, WORD], [said(" \ufffd \ufffd OK", WORD)]),
    "the special token's text left out": ([SPECIAL, WORD], [said("", SPECIAL), said(" ok", WORD)]),
}  # fmt: skip
"""What is shown of an answer though it must not be, or is not though it must."""


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_answer_with_tokens_left_out_is_wrong(judge: Judging, case: str) -> None:
    with pytest.raises(Wrong):
        judge(*WRONG[case])


def test_who_leaves_sees_the_beginning_of_the_answer(judge: Judging) -> None:
    answer = [WORD, HALF, WORD, HALF, REST, SPECIAL]
    pieces = [said(" ok", WORD), said(" \ufffd ok", WORD), said(" न", REST)]
    for count in range(4):
        assert judge(answer, pieces[:count], left=True) == [0, 0, 1, 2][count]
        with pytest.raises(Wrong):
            judge(answer, pieces[:count])
    for wrong in (pieces[1:], pieces[:1] * 2, [said(" o", WORD)], [said(" ok", 28)]):
        with pytest.raises(Wrong):
            judge(answer, wrong, left=True)


def test_an_answer_that_shows_every_token_shows_its_text_and_no_other(judge: Judging) -> None:
    answer = [WORD, HALF, REST, WORD, HALF]
    whole = said(" ok न ok", *answer)
    streamed = [said("")] + [
        said(text, token) for text, token in zip((" ok", "", " न", " ok", ""), answer, strict=True)
    ]
    judge(answer, [whole], gaps=False)
    judge(answer, streamed, gaps=False)
    judge(answer, streamed[:4], gaps=False)
    for text in (" ok न ok \ufffd", " ok न", "", " ok \ufffdन ok", " ok न ok "):
        with pytest.raises(Wrong, match="the detokenizer makes"):
            judge(answer, [replace(whole, text=text)], gaps=False)
    with pytest.raises(Wrong, match="the detokenizer makes"):
        judge(answer, [said(" "), *streamed[1:]], gaps=False)


def test_a_log_probability_is_judged_where_it_is_shown(judge: Judging) -> None:
    for wrong in (LOGPROB + 2 * TOLERANCE, LOGPROB - 2 * TOLERANCE, math.nan):
        piece = Piece([(WORD, wrong)], " ok")
        with pytest.raises(Wrong, match="log-probability"):
            judge([WORD, HALF], [piece])
        with pytest.raises(Wrong, match="log-probability"):
            judge([WORD], [piece], gaps=False)


class Tied(Script):
    def __call__(self, ids: torch.Tensor, **options: Any) -> Any:
        output = super().__call__(ids, **options)
        output.logits[..., OTHER_HALF] = output.logits[..., HALF]
        return output


def test_a_token_left_out_may_be_either_of_two_that_are_as_likely(
    tiny_judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_judge, "model", Tied(PROMPT, [HALF, REST]))
    asyncio.run(tiny_judge.check_with_gaps(PROMPT, [said(" न", REST)], [], 2))


Fault = Callable[[list[Piece], random.Random], list[Piece]]


def _changed(at: int, pieces: list[Piece], piece: Piece) -> list[Piece]:
    return [*pieces[:at], piece, *pieces[at + 1 :]]


def _dropped(pieces: list[Piece], rng: random.Random) -> list[Piece]:
    at = rng.randrange(len(pieces))
    return [*pieces[:at], *pieces[at + 1 :]]


def _repeated(pieces: list[Piece], rng: random.Random) -> list[Piece]:
    at = rng.randrange(len(pieces))
    return [*pieces[: at + 1], *pieces[at:]]


def _cut(pieces: list[Piece], rng: random.Random) -> list[Piece]:
    at = rng.randrange(len(pieces))
    return _changed(at, pieces, replace(pieces[at], text=pieces[at].text[:-1]))


def _added(pieces: list[Piece], rng: random.Random) -> list[Piece]:
    return _changed(-1 % len(pieces), pieces, replace(pieces[-1], text=pieces[-1].text + "\ufffd"))


def _another(pieces: list[Piece], rng: random.Random) -> list[Piece]:
    at = rng.randrange(len(pieces))
    tokens = list(pieces[at].tokens)
    place = rng.randrange(len(tokens))
    tokens[place] = (tokens[place][0] ^ 1, tokens[place][1])
    return _changed(at, pieces, replace(pieces[at], tokens=tokens))


def _without_tokens(pieces: list[Piece], rng: random.Random) -> list[Piece]:
    at = rng.randrange(len(pieces))
    return _changed(at, pieces, replace(pieces[at], tokens=[]))


FAULTS: tuple[Fault, ...] = (_dropped, _repeated, _cut, _added, _another, _without_tokens)


def test_whatever_vllm_streams_is_right_and_nothing_else(judge: Judging, tiny_model: Path) -> None:
    """Tokens of all kinds in random order, and a client that reads so slowly that some come together."""
    words, rng = AutoTokenizer.from_pretrained(tiny_model), random.Random(0)
    pools = [[HALF], [REST], FACE, [SPECIAL], range(VOCABULARY), range(VOCABULARY)]
    for _ in range(SEQUENCES):
        answer = [rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 10))]
        # After a prompt that ends within a character, vLLM shows the prompt again with the first text.
        prompt = rng.choice((PROMPT, [*PROMPT, HALF]))
        chunks = streamed(words, prompt, answer, rng)
        judge(answer, chunks, gaps=False, prompt=prompt)
        pieces = [chunk for chunk in chunks if chunk.text]
        judge(answer, pieces, prompt=prompt)
        judge(answer, pieces[: rng.randint(0, len(pieces))], left=True, prompt=prompt)
        for fault in FAULTS if pieces else ():
            with pytest.raises(Wrong):
                judge(answer, fault(pieces, rng), prompt=prompt)


SEQUENCES = 100


def streamed(
    words: Any, prompt: Sequence[int], answer: Sequence[int], rng: random.Random
) -> list[Piece]:
    """What vLLM's output processor makes of ``answer`` when it comes in random portions."""
    request = SimpleNamespace(
        request_id="", prompt_token_ids=list(prompt), sampling_params=SamplingParams(skip_special_tokens=False)
    )  # fmt: skip
    stream = IncrementalDetokenizer.from_new_request(words, request)
    chunks, rest = [], list(answer)
    while rest:
        size = rng.choice((1, 1, 2, 4))
        tokens, rest = rest[:size], rest[size:]
        stream.update(tokens, stop_terminated=False)
        text = stream.get_next_output_text(finished=not rest, delta=True)
        chunks.append(said(text, *tokens))
    return chunks
