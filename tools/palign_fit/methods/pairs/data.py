"""Preference pairs as the model sees them: conversations and their answers as tokens in its own chat template, gradients
to fit from, margins to measure by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from palign_fit.arrays import Activations
from palign_fit.errors import FitError, InputError
from palign_fit.inputs.pairs import Pair, Turn
from palign_fit.model.continuations import Prefix
from palign_fit.model.gradients import read_gradients
from palign_fit.model.likelihood import Reader, statement_loglik
from palign_fit.model.model import OpenedModel
from palign_fit.model.narrow import computing_in
from palign_fit.model.prompts import rendered
from vllm_palign.directions.numbers import Reals

MAX_PROMPT = 1024
MAX_ANSWER = 256
"""Tokens that are read of an answer: how somebody speaks shows early."""

MIN_PAIRS = 10
MAX_USED = 1000
"""Pairs that are read by the model; of more, a seeded sample."""

FOLDS = 5
"""Held-out figures: each fifth of the prompts under heads and directions found without them."""


@dataclass(frozen=True)
class Lines:
    """A pair as token ids; ``chosen`` and ``rejected`` follow ``prefix``."""

    prefix: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def tokenised(tokenizer: Any, pair: Pair) -> Lines:
    """Answers include what ends the turn, so that short answers differ from long ones.

    They are cut to MAX_ANSWER tokens. Raises InputError where the template refuses the conversation.
    """
    prefix = _rendered(tokenizer, pair.prompt)
    chosen, rejected = (
        _answer(tokenizer, pair.prompt, prefix, answer)[:MAX_ANSWER]
        for answer in (pair.chosen, pair.rejected)
    )
    return Lines(tuple(_ids(tokenizer, prefix, start=True)), tuple(chosen), tuple(rejected))


def _answer(tokenizer: Any, prompt: tuple[Turn, ...], prefix: str, answer: str) -> list[int]:
    if not _templated(tokenizer):
        return _ids(tokenizer, f" {answer}")
    whole = _rendered(tokenizer, (*prompt, ("assistant", answer)))
    # Some templates write an answer's turn in another way than they ask for one.
    rest = whole[len(prefix) :].rstrip() if whole.startswith(prefix) else answer
    return _ids(tokenizer, rest)


def _rendered(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """The conversation as the model sees it, up to where it is to answer or has answered."""
    from jinja2.exceptions import TemplateError

    asking = turns[-1][0] == "user"
    if not _templated(tokenizer):
        names = {"system": "{}\n\n", "user": "Question: {}\n", "assistant": "Answer: {}\n"}
        text = "".join(names[role].format(content) for role, content in turns)
        return f"{text}Answer:" if asking else text
    try:
        messages = [{"role": role, "content": content} for role, content in turns]
        return rendered(tokenizer, messages, asking=asking)
    except TemplateError as error:
        roles = ", ".join(role for role, _ in turns)
        raise InputError(
            f"the model's chat template refuses turns of {roles}: {str(error)[:200]}"
        ) from error


def _templated(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))


def _ids(tokenizer: Any, text: str, *, start: bool = False) -> list[int]:
    # A template writes its own special tokens.
    special = start and not _templated(tokenizer)
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


@dataclass(frozen=True, eq=False)
class PairData:
    """``differences`` float32 [N, L, H, D], gradient of chosen minus rejected; ``covariance`` float32
    [L, H, D, D] of the head outputs; ``folds`` int64 [N], what is held out together."""

    lines: tuple[Lines, ...]
    differences: Activations
    covariance: Activations
    folds: npt.NDArray[np.int64]


def usable(
    model: OpenedModel, pairs: Sequence[Pair], seed: int
) -> tuple[tuple[Lines, ...], list[str]]:
    """Pairs as tokens, at most MAX_USED, and notes on what was left out or cut. Raises InputError."""
    notes = []
    chosen = list(pairs)
    if len(chosen) > MAX_USED:
        drawn = np.random.default_rng(seed).choice(len(chosen), MAX_USED, replace=False)
        chosen = [chosen[at] for at in np.sort(drawn)]
        notes.append(f"{MAX_USED} of {len(pairs)} pairs are used, drawn with seed {seed}")
    lines = [tokenised(model.tokenizer, pair) for pair in chosen]
    config = model.model.config.get_text_config(decoder=True)
    longest = int(getattr(config, "max_position_embeddings", None) or MAX_PROMPT + MAX_ANSWER)
    room = min(MAX_PROMPT, longest - MAX_ANSWER)
    kept = tuple(one for one in lines if len(one.prefix) <= room and one.chosen != one.rejected)
    if len(kept) < len(lines):
        notes.append(
            f"{len(lines) - len(kept)} pairs left out: prompts over {room} tokens, or answers alike "
            f"in their first {MAX_ANSWER}"
        )
    if len(kept) < MIN_PAIRS:
        raise InputError(
            f"{len(kept)} usable pairs, wanted at least {MIN_PAIRS}, and 50 or more for a fit worth "
            f"having{'; ' if notes else ''}{'; '.join(notes)}"
        )
    prompts = len({one.prefix for one in kept})
    if prompts < MIN_PAIRS:
        notes.append(
            f"{prompts} different prompts, too few to hold some out: pairs of one prompt were both learned from and "
            "held out, and the held-out figures flatter"
        )
    cut = sum(max(len(one.chosen), len(one.rejected)) == MAX_ANSWER for one in kept)
    if cut:
        notes.append(f"{cut} pairs have answers of which only {MAX_ANSWER} tokens are read")
    return kept, notes


def read_pair_data(
    model: OpenedModel,
    lines: tuple[Lines, ...],
    seed: int,
    tick: Callable[[int], None] = lambda _: None,
) -> PairData:
    """Run the model over every pair once. Raises FitError for gradients that are not finite."""
    heads = (model.num_layers, model.num_heads, model.head_dim)
    differences = np.zeros((len(lines), *heads), np.float32)
    total = np.zeros(heads)
    products = np.zeros((*heads, model.head_dim))
    for rows in _by_prefix(lines):
        answers = [answer for row in rows for answer in (lines[row].chosen, lines[row].rejected)]
        with computing_in(model.model, model.gradient_dtype):
            found = read_gradients(model, Prefix(model, lines[rows[0]].prefix), answers)
        differences[rows] = found.gradients[0::2] - found.gradients[1::2]
        by_head = found.outputs.transpose(1, 2, 3, 0).astype(np.float64)
        total += by_head.sum(-1)
        products += by_head @ by_head.swapaxes(-1, -2)
        tick(len(rows))
    if not np.isfinite(differences).all():
        raise FitError(f"{model.base_model}: gives NaN or Inf gradients; try --dtype float32")
    mean = total / (2 * len(lines))
    covariance = products / (2 * len(lines)) - mean[..., :, None] * mean[..., None, :]
    folds = _folds(lines, seed)
    return PairData(lines, differences, covariance.astype(np.float32), folds)


def _folds(lines: Sequence[Lines], seed: int) -> npt.NDArray[np.int64]:
    """int64 [N]. Prompts are dealt, not pairs, unless there are too few prompts to hold some out."""
    prompts = list(dict.fromkeys(one.prefix for one in lines))
    rng = np.random.default_rng(seed)
    if len(prompts) < MIN_PAIRS:
        return rng.permutation(len(lines)) % FOLDS
    fold_of = dict(zip(prompts, rng.permutation(len(prompts)) % FOLDS, strict=True))
    return np.array([fold_of[one.prefix] for one in lines])


def margins(
    model: OpenedModel,
    reader: Reader,
    lines: Sequence[Lines],
    tick: Callable[[int], None] = lambda _: None,
) -> Reals:
    """Log-likelihood per token of chosen minus rejected: float64 [N], nats."""
    found = np.zeros(len(lines))
    for rows in _by_prefix(lines):
        answers = [answer for row in rows for answer in (lines[row].chosen, lines[row].rejected)]
        means = statement_loglik(model, lines[rows[0]].prefix, answers, reader)
        found[rows] = np.subtract(means[0::2], means[1::2])
        tick(len(rows))
    return found


def _by_prefix(lines: Sequence[Lines]) -> list[list[int]]:
    """Rows that share a prompt, so that it is read once."""
    found: dict[tuple[int, ...], list[int]] = {}
    for row, one in enumerate(lines):
        found.setdefault(one.prefix, []).append(row)
    return list(found.values())
