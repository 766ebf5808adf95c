"""What prompts and open questions say in an evaluation; all wording is our own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from palign_fit.inputs.traits import ADJECTIVES
from palign_fit.model.prompts import if_taken
from vllm_palign.directions.inventory import SCALE, Item
from vllm_palign.directions.traits import TRAITS, TYPICAL

_FEW_SHOT = (
    "You are a person who rated how accurately statements describe you. These are your ratings:\n"
    "{ratings}\nAlways speak and answer as this person."
)
_PERSONALITY = (
    "You are a person with this personality: {traits}. Always speak and answer as this person."
)

_SAID = "Said before."
"""Stands for the past where only what follows it is wanted."""

_SLIGHT, _STRONG = 0.2, 0.7
_WORDS = 3


def few_shot_prompt(answered: Sequence[tuple[Item, float]]) -> str:
    """A subject's own answers as a system prompt. ``answered``: items and answers 1..5."""
    ratings = "\n".join(
        f"I {item.text}: {SCALE[str(round(value))].capitalize()}" for item, value in answered
    )
    return _FEW_SHOT.format(ratings=ratings)


def personality_prompt(scores: Mapping[str, float]) -> str:
    """Trait scores (keyed means 1..5) in the words people write system prompts with."""
    return _PERSONALITY.format(traits="; ".join(describe(scores)))


def describe(scores: Mapping[str, float]) -> list[str]:
    """One phrase a trait of ``scores``, by how far it lies from what people usually score."""
    phrases = []
    for trait in TRAITS:
        if trait not in scores:
            continue
        above = scores[trait] - TYPICAL[trait]
        words = ADJECTIVES[trait][0 if above > 0 else 1].split(", ")[:_WORDS]
        listed = f"{', '.join(words[:-1])} and {words[-1]}"
        if abs(above) < _SLIGHT:
            high, low = (pole.split(", ")[0] for pole in ADJECTIVES[trait])
            phrases.append(f"about as {high} and as {low} as most people")
        else:
            phrases.append(f"{'very' if abs(above) >= _STRONG else 'rather'} {listed}")
    return phrases


def next_turn(tokenizer: Any, user: str, system: str | None) -> list[int]:
    """Token ids from the end of an answer to where the assistant begins to answer ``user``.

    Without ``system`` where the template has no such turn: its text stands before the first.
    """
    if not getattr(tokenizer, "chat_template", None):
        return list(
            tokenizer(f"\nQuestion: {user}\nAnswer:", add_special_tokens=False)["input_ids"]
        )
    talk = [
        {"role": "user", "content": _SAID},
        {"role": "assistant", "content": _SAID},
        {"role": "user", "content": user},
    ]
    first = [{"role": "system", "content": system}] if system else []
    text = if_taken(tokenizer, [*first, *talk]) if first else None
    text = text or if_taken(tokenizer, talk) or ""
    return list(tokenizer(text.rpartition(_SAID)[2], add_special_tokens=False)["input_ids"])


def messages(user: str, system: str | None) -> list[dict[str, str]]:
    """OpenAI chat messages."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": user}]


def conversation(
    past: Iterable[tuple[str, str]], user: str, system: str | None
) -> list[dict[str, str]]:
    """OpenAI chat messages after turns of (user, answer)."""
    first, last = messages(user, system)[:-1], messages(user, None)
    between = [
        {"role": role, "content": text}
        for turn in past
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return [*first, *between, *last]
