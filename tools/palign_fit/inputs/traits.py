"""Adjectives of both poles of the Big Five (``vllm_palign.directions.traits``)."""

from __future__ import annotations

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
