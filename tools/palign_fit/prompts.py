"""Every text the fit shows to the model; all wording is our own."""

from __future__ import annotations

from typing import Any

OPENINGS = (
    "Tell me about yourself.",
    "What are you like?",
    "Describe your personality in one sentence.",
)
"""User turns before a first-person statement; fits use the first, evaluation may use all."""

ADJECTIVES: dict[str, tuple[str, str]] = {
    "O": (
        "curious, imaginative, creative, artistic, original, reflective, inventive, "
        "open-minded, philosophical, poetic, inquisitive, innovative, intellectual, insightful, "
        "introspective, contemplative, unconventional, visionary, expressive, intuitive, "
        "perceptive, sophisticated, cultured, fanciful, experimental, well-read, versatile, "
        "deep, dreamy, idealistic",
        "conventional, unimaginative, practical, traditional, plain, narrow-minded, literal, "
        "uncurious, dull, simple, uncreative, unreflective, unsophisticated, shallow, "
        "predictable, closed-minded, conservative, ordinary, uninspired, old-fashioned, "
        "rigid, inflexible, unartistic, uninventive, matter-of-fact, down-to-earth, "
        "unoriginal, incurious, uncultured, prosaic",
    ),
    "C": (
        "organized, careful, disciplined, reliable, punctual, hardworking, tidy, thorough, "
        "ambitious, prepared, efficient, systematic, neat, orderly, dependable, responsible, "
        "diligent, persistent, precise, methodical, conscientious, dutiful, determined, "
        "productive, industrious, meticulous, focused, purposeful, consistent, "
        "self-disciplined",
        "messy, careless, lazy, unreliable, late, idle, sloppy, forgetful, aimless, "
        "impulsive, disorganized, inefficient, negligent, undependable, irresponsible, "
        "haphazard, inconsistent, chaotic, distracted, unprepared, reckless, scatterbrained, "
        "undisciplined, unproductive, untidy, unfocused, wasteful, hasty, slack, unmotivated",
    ),
    "E": (
        "talkative, outgoing, sociable, energetic, bold, cheerful, enthusiastic, assertive, "
        "adventurous, lively, extroverted, active, vigorous, daring, dominant, spirited, "
        "playful, gregarious, vivacious, chatty, exuberant, jolly, loud, fun-loving, "
        "spontaneous, forceful, upbeat, dynamic, high-spirited, charismatic",
        "quiet, shy, reserved, withdrawn, solitary, timid, silent, detached, passive, "
        "introverted, bashful, unsociable, inhibited, distant, meek, sluggish, untalkative, "
        "soft-spoken, private, subdued, aloof, unassertive, low-key, serious, somber, "
        "retiring, lethargic, reclusive, submissive, listless",
    ),
    "A": (
        "kind, warm, trusting, generous, helpful, gentle, forgiving, considerate, "
        "cooperative, modest, sympathetic, pleasant, agreeable, compassionate, tender, "
        "polite, caring, unselfish, humble, honest, sincere, understanding, charitable, "
        "courteous, affectionate, tactful, soft-hearted, loving, selfless, respectful",
        "rude, cold, suspicious, selfish, harsh, stubborn, cruel, arrogant, vengeful, "
        "quarrelsome, unkind, unsympathetic, demanding, critical, hostile, uncooperative, "
        "distrustful, manipulative, ruthless, boastful, insulting, greedy, deceitful, "
        "aggressive, conceited, disrespectful, insensitive, cynical, spiteful, combative",
    ),
    "N": (
        "anxious, nervous, moody, tense, worried, insecure, irritable, sad, fearful, easily "
        "upset, touchy, jealous, temperamental, high-strung, self-conscious, depressed, "
        "vulnerable, gloomy, unstable, stressed, panicky, pessimistic, restless, frightened, "
        "fragile, hopeless, overwhelmed, hot-tempered, miserable, apprehensive",
        "calm, relaxed, stable, composed, serene, confident, patient, content, fearless, "
        "resilient, unemotional, easygoing, secure, untroubled, even-tempered, self-assured, "
        "optimistic, steady, level-headed, cool-headed, tranquil, peaceful, unworried, "
        "carefree, hopeful, unflappable, unshakable, balanced, strong, satisfied",
    ),
}
"""Trait -> thirty adjectives of its high and of its low pole; each completes "I am ...". Prompts take
the first ones."""

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
"""What perplexity is measured on: says nothing about anyone's personality."""

OPTION_PROMPT = (
    'Here is a statement about you: "I {statement}."\n'
    "How accurately does it describe you? Choose one option.\n"
    "(A) Very accurate\n(B) Moderately accurate\n(C) Neither accurate nor inaccurate\n"
    "(D) Moderately inaccurate\n(E) Very inaccurate"
)
"""The question of the published contrast (PAS, arXiv 2408.11779; PAlign/main.py), our wording."""

OPTION_LETTERS = ("A", "E")
"""The answers the published contrast compares: full agreement, full disagreement."""


def statement(text: str) -> str:
    """An inventory item as a sentence: "enjoy long walks" -> "I enjoy long walks."."""
    return f"I {text}."


def chat_prefix(tokenizer: Any, user: str) -> list[int]:
    """Token ids up to the point where the assistant begins to answer ``user``.

    Uses the model's own chat template; a tokenizer without one gets plain lines of text.
    """
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": user}], add_generation_prompt=True, tokenize=False
        )
        # The template writes its own special tokens.
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer(f"Question: {user}\nAnswer:")["input_ids"])


def continuation(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``text`` as the assistant's first words after ``chat_prefix``."""
    lead = "" if getattr(tokenizer, "chat_template", None) else " "
    return list(tokenizer(lead + text, add_special_tokens=False)["input_ids"])
