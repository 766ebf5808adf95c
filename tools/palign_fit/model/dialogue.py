"""Conversations and their answers as tokens, in the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from palign_fit.errors import InputError
from palign_fit.inputs.pairs import Pair, Turn
from palign_fit.model.prompts import rendered

MAX_PROMPT = 1024
MAX_ANSWER = 256
"""Tokens that are read of an answer: how somebody speaks shows early."""


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
