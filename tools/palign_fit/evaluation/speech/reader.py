"""Readers of answers, which see a question and what somebody said and never who it was; what they make of it is
kept by person."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from palign_fit.errors import FitError
from palign_fit.evaluation import texts
from palign_fit.evaluation.client import IN_FLIGHT, base_url, first_model, open_client, run_all
from palign_fit.evaluation.speech.asking import identity, kept
from palign_fit.inputs.traits import ADJECTIVES
from palign_fit.model.cache import Arrays, Cache
from palign_fit.model.model import OpenedModel
from palign_fit.model.prompts import chat_prefix, continuation
from palign_fit.model.rows import Rows
from palign_fit.progress import Progress, Tick
from vllm_palign.directions.numbers import Reals
from vllm_palign.directions.traits import TRAITS

if TYPE_CHECKING:
    from openai import AsyncOpenAI

SEEN = 'Someone was asked: "{question}"\nThey answered: "{answer}"\n'
_WORD = SEEN + "Describe this person in one word."
_RATE = (
    SEEN
    + "What is this person like, as far as this shows it? Rate from 1 to 9, where 5 is like most people:\n"
    "O: 1 conventional and practical, 9 curious and imaginative\n"
    "C: 1 careless and disorganized, 9 organized and disciplined\n"
    "E: 1 quiet and reserved, 9 talkative and outgoing\n"
    "A: 1 rude and cold, 9 kind and warm\n"
    "N: 1 calm and relaxed, 9 anxious and moody\n"
    "Reply with the five numbers only, in this order, separated by commas."
)

_LEAD = "This person is"
"""How the reader's answer begins: a word after a blank is one token far more often than an answer's first."""

_TELLING = 5

MAX_ROWS = 64

Pair = tuple[str, str]
"""A question and an answer to it."""

TOGETHER = 512
"""Readings that are kept at once: a question that many people answered is read once for them."""


class Reader(Protocol):
    """``name`` in the report; ``identity`` is all that its readings depend on."""

    name: str
    identity: dict[str, Any]

    def read(self, pairs: Sequence[Pair], tick: Tick) -> Reals:
        """How each answer sounds, towards the high pole of each trait: float64 [N, 5], in a unit of the reader's own;
        NaN where it would not say. ``tick`` hears of every one."""
        ...


class WordReader:
    """A language model's odds of the words of both poles of each trait, in nats: log of the summed probability of
    the high pole's words as what it says next, minus the low pole's."""

    def __init__(self, model: OpenedModel, cache: Cache) -> None:
        self.model, self.name = model, model.base_model
        self.identity = {"what": "trait words 2", **identity(model, cache)}

    @cached_property
    def words(self) -> list[tuple[list[int], list[int]]]:
        """Per trait the tokens of the high and of the low pole. Raises FitError where a pole has none."""
        words = trait_words(self.model.tokenizer)
        bare = [trait for trait, poles in zip(TRAITS, words, strict=True) if not all(poles)]
        if bare:
            raise FitError(
                f"--reader {self.name}: its tokenizer has no word of its own for a pole of {', '.join(bare)}; "
                "take another reader"
            )
        return words

    def read(self, pairs: Sequence[Pair], tick: Tick) -> Reals:
        """Answers to one question beside one another: what they begin with is read once."""
        prompts = [self.prompt(pair) for pair in pairs]
        scores = np.zeros((len(pairs), len(TRAITS)))
        order = sorted(range(len(pairs)), key=lambda place: (pairs[place][0], len(prompts[place])))
        for start in range(0, len(order), MAX_ROWS):
            places = order[start : start + MAX_ROWS]
            scores[places] = self._odds(
                [pairs[one][0] for one in places], [prompts[one] for one in places]
            )
            tick(len(places))
        return scores

    def prompt(self, pair: Pair) -> list[int]:
        asked = _WORD.format(question=pair[0], answer=pair[1])
        lead = continuation(self.model.tokenizer, _LEAD)
        return [*chat_prefix(self.model.tokenizer, asked), *lead]

    def _odds(self, questions: Sequence[str], prompts: Sequence[Sequence[int]]) -> Reals:
        heads = _shared(questions, prompts)
        rows = Rows.of(self.model, [prompt[:n] for prompt, n in zip(prompts, heads, strict=True)])
        logits = rows.put([prompt[n:] for prompt, n in zip(prompts, heads, strict=True)])
        last = logits[:, -1].double()
        odds = [
            last[:, high].logsumexp(-1) - last[:, low].logsumexp(-1) for high, low in self.words
        ]
        return np.array([one.cpu().numpy() for one in odds]).T


def trait_words(tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Per trait the first tokens of the words of its high and of its low pole, as they follow ``_LEAD``.

    A token counts that is a whole word of one pole, or _TELLING letters or more that begin words of one pole only and
    are nobody's whole word: "an" begins "anxious", and anything else.
    """
    lead = continuation(tokenizer, _LEAD)
    whole: dict[int, set[tuple[str, int]]] = {}
    begun: dict[int, set[tuple[str, int]]] = {}
    for trait, poles in ADJECTIVES.items():
        for pole, words in enumerate(poles):
            for word in words.split(", "):
                first, *rest = continuation(tokenizer, f"{_LEAD} {word}")[len(lead) :]
                if rest and len(tokenizer.decode([first]).strip()) < _TELLING:
                    continue
                (begun if rest else whole).setdefault(first, set()).add((trait, pole))
    tokens = {**begun, **whole}
    unknown = getattr(tokenizer, "unk_token_id", None)
    owned = {
        token: next(iter(owners))
        for token, owners in tokens.items()
        if len(owners) == 1 and token != unknown
    }

    def tokens_of(trait: str, pole: int) -> list[int]:
        return sorted(token for token, owner in owned.items() if owner == (trait, pole))

    return [(tokens_of(trait, 0), tokens_of(trait, 1)) for trait in TRAITS]


class RatingReader:
    """An OpenAI-compatible endpoint that rates each answer, 1 to 9 on each trait, in one reply."""

    def __init__(self, url: str, model: str | None, key: str | None) -> None:
        self.url, self._key = base_url(url), key
        self.model = model or run_all([first_model], self._open, 1)[0]
        self.name = self.model
        self.identity = {"what": "ratings 1", "url": self.url, "model": self.model}

    def read(self, pairs: Sequence[Pair], tick: Tick) -> Reals:
        async def rate(pair: Pair, client: AsyncOpenAI) -> list[float]:
            asked: Any = texts.messages(_RATE.format(question=pair[0], answer=pair[1]), None)
            reply = await client.chat.completions.create(
                model=self.model,
                messages=asked,
                max_tokens=40,
                temperature=0,
            )
            tick(1)
            return ratings(reply.choices[0].message.content or "" if reply.choices else "")

        calls = [partial(rate, pair) for pair in pairs]
        return np.array(run_all(calls, self._open, IN_FLIGHT)).reshape(-1, len(TRAITS))

    def _open(self) -> AsyncOpenAI:
        return open_client(self.url, self._key)


def ratings(reply: str) -> list[float]:
    """Five numbers of 1 to 9, NaN for any other reply: nothing is guessed."""
    found = [int(one) for one in re.findall(r"\d+", reply)]
    if len(found) != len(TRAITS) or not all(1 <= one <= 9 for one in found):
        return [float("nan")] * len(TRAITS)
    return [float(one) for one in found]


def _shared(questions: Sequence[str], prompts: Sequence[Sequence[int]]) -> list[int]:
    """How many tokens each prompt begins with that all of its question do, less than all of it."""
    lengths = {}
    for question in dict.fromkeys(questions):
        own = [
            list(prompt)
            for asked, prompt in zip(questions, prompts, strict=True)
            if asked == question
        ]
        shortest = min(map(len, own)) - 1
        first, last = min(own), max(own)
        lengths[question] = next((n for n in range(shortest) if first[n] != last[n]), shortest)
    return [lengths[question] for question in questions]


class Readings:
    """Asks ``readers``; nothing that is in ``cache`` is read again."""

    def __init__(self, readers: Sequence[Reader], cache: Cache, progress: Progress) -> None:
        self.readers, self.cache, self.progress = readers, cache, progress

    def read(self, reader: Reader, said: Sequence[Sequence[Pair]], name: str) -> Reals:
        """Of S people's Q answers each: float64 [S, Q, 5]."""

        def compute(places: list[int], tick: Tick) -> list[Arrays]:
            pairs = list(dict.fromkeys(pair for place in places for pair in said[place]))
            scores = dict(zip(pairs, reader.read(pairs, tick), strict=True))
            tick(sum(len(said[place]) for place in places) - len(pairs), free=True)
            return [{"read": np.array([scores[pair] for pair in said[place]])} for place in places]

        keys = [{"reader": reader.identity, "said": [list(pair) for pair in own]} for own in said]
        sizes = [len(own) for own in said]
        label = f"{name}, read by {reader.name}"
        found = kept(self.cache, keys, sizes, compute, self.progress, label, TOGETHER)
        return np.array([entry["read"] for entry in found], dtype=np.float64)
