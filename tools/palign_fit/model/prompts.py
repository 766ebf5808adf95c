"""Every text the fit shows to the model; all wording is our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

OPENINGS = (
    "Tell me about yourself.",
    "What are you like?",
    "Describe your personality in one sentence.",
)
"""User turns before a first-person statement; fits use the first, evaluation may use all."""

NEUTRAL_TEXT = (
    "The bridge was built in two stages. Workers first sank wooden piles into the river bed and "
    "filled the space between them with stone. When the piers had settled, a second crew laid the "
    "deck, which is wide enough for a cart and a footpath. Most of the timber came from a forest "
    "twenty miles to the north and was floated down the river in spring, when the water is high. "
    "The town kept a record of every delivery, so we know what each beam cost and how long the work "
    "took. A flood carried away one of the arches forty years later. It was replaced with iron, and "
    "the new part can still be told from the old one by its colour. Today the bridge is closed to "
    "cars. Buses use the newer crossing near the station, and the old road leads to a small museum "
    "that shows maps, tools and a model of the river valley. It opens at nine in the morning, and "
    "guided tours start every hour from the main gate."
)
"""What an evaluation measures perplexity on: says nothing about anyone's personality."""

CHATS = (
    (
        "What is a good way to clean a cast iron pan?",
        "Rinse it with hot water while it is still warm and scrub off what sticks with a brush and some salt. Dry it at "
        "once, put it back on the stove for a minute, and rub it with a thin film of oil before you store it.",
    ),
    (
        "Why do cats purr?",
        "Cats purr when they are content, but also when they are hurt or afraid. The sound comes from muscles of the "
        "larynx that twitch about thirty times a second, so that air trembles on its way in and out.",
    ),
    (
        "Wie lagere ich Brot richtig?",
        "Am besten liegt Brot bei Raumtemperatur in einem Kasten aus Holz oder Ton, der etwas Luft durchlässt. Im "
        "Kühlschrank wird es schneller trocken.",
    ),
    (
        "Write a Python function that counts the vowels in a text.",
        '```python\ndef count_vowels(text):\n    return sum(letter in "aeiou" for letter in text.lower())\n```',
    ),
)
"""Questions and answers of ordinary use, about nobody's personality: what says how strongly to steer. An evaluation
asks others."""

OPTION_PROMPT = (
    'Here is a statement about you: "I {statement}."\n'
    "How accurately does it describe you? Choose one option.\n"
    "(A) Very accurate\n(B) Moderately accurate\n(C) Neither accurate nor inaccurate\n"
    "(D) Moderately inaccurate\n(E) Very inaccurate"
)
"""The question of the published contrast (PAS, arXiv 2408.11779; PAlign/main.py), our wording."""

OPTION_LETTERS = ("A", "E")
"""The answers the published contrast compares: full agreement, full disagreement."""


TODAY = datetime(2025, 1, 1)
"""What a chat template that prints the date is told: the same input gives the same bytes on any day."""


def rendered(tokenizer: Any, turns: Sequence[Mapping[str, str]], *, asking: bool = True) -> str:
    """``turns`` in the model's own chat template; ``asking``: up to where the assistant is to answer.

    Every text of the fit and of its evaluation is rendered here: what a template may ask of the outside
    world, the clock, is pinned. Raises jinja2's TemplateError where the template refuses the turns.
    """
    return str(
        tokenizer.apply_chat_template(
            [dict(turn) for turn in turns],
            add_generation_prompt=asking,
            tokenize=False,
            strftime_now=TODAY.strftime,
        )
    )


def statement(text: str) -> str:
    """An inventory item as a sentence: "enjoy long walks" -> "I enjoy long walks."."""
    return f"I {text}."


def chat_prefix(tokenizer: Any, user: str, system: str | None = None) -> list[int]:
    """Token ids up to the point where the assistant begins to answer ``user``, after ``system`` if it is there.

    Uses the model's own chat template; a tokenizer without one gets plain lines of text.
    """
    if getattr(tokenizer, "chat_template", None):
        text = (
            _with_system(tokenizer, user, system) if system else rendered(tokenizer, _asked(user))
        )
        # The template writes its own special tokens.
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    lead = f"{system}\n\n" if system else ""
    return list(tokenizer(f"{lead}Question: {user}\nAnswer:")["input_ids"])


def _with_system(tokenizer: Any, user: str, system: str) -> str:
    """A template that takes no system turn, or drops it, gets its text before the user's."""
    text = if_taken(tokenizer, [{"role": "system", "content": system}, *_asked(user)])
    if text is not None and " ".join(system.split()) in " ".join(text.split()):
        return text
    return rendered(tokenizer, _asked(f"{system}\n\n{user}"))


def if_taken(tokenizer: Any, turns: Sequence[Mapping[str, str]]) -> str | None:
    """``rendered``, or None where the template refuses the system turn that ``turns`` begin with."""
    from jinja2.exceptions import TemplateError

    try:
        return rendered(tokenizer, turns)
    except TemplateError:
        if turns[0]["role"] != "system":
            raise
        return None


def _asked(user: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}]


def continuation(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` as the assistant's first words after ``chat_prefix``."""
    lead = "" if getattr(tokenizer, "chat_template", None) else " "
    return list(tokenizer(lead + text, add_special_tokens=False)["input_ids"])
