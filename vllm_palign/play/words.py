"""What the page says: a server's errors, headers and figures as sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

TRAITS = {
    "O": "Openness",
    "C": "Conscientiousness",
    "E": "Extraversion",
    "A": "Agreeableness",
    "N": "Neuroticism",
}

_HEADER = re.compile(r"(?P<parts>[^;]+);strength=(?P<strength>[^;]+);scope=(?P<scope>\w+)")
_TOO_STRONG = re.compile(
    r"amounts to (?P<asked>[\d.e+-]+)(?: for persona '(?P<who>[^']+)')?, .*?at most (?P<most>[\d.e+-]+)"
)
_SCOPES = {"answers": "answers steered", "all": "prompt and answers steered"}


def no_answer(url: str, *, begun: bool = False) -> str:
    """``begun``: it had begun to answer."""
    if begun:
        return f"The server at {url} broke off. Ask again when it is back."
    return f"The server at {url} does not answer. It may be starting; this page keeps trying."


def refusal(status: int, code: str, message: str, *, has_key: bool) -> str:
    """An error reply as a sentence for whoever is at the page."""
    if status == 401:
        if has_key:
            return "The server does not know this API key. Enter another under “Server and key”."
        return "The server wants an API key. Enter it under “Server and key”."
    if code == "directions_missing":
        return (
            "This server makes no personas from answers: it was started without directions "
            "(--palign-directions). A persona file can be added all the same."
        )
    if code == "persona_not_found":
        return f"{_sentence(message)} It may have been deleted meanwhile."
    if code == "persona_forbidden" and "role" in message:
        return "This API key may ask personas, not make, replace or delete them."
    if strong := _TOO_STRONG.search(message):
        asked, who, most = strong["asked"], strong["who"], strong["most"]
        whom, allows = (f" for {who}", "its file") if who else ("", "the server")
        return (
            f"Too strong: this amounts to {asked}{whom}, and {allows} allows at most {most}. "
            "Lower the strength or the weights."
        )
    if status == 503:
        return "The server cannot look personas up just now. Ask again in a moment."
    if status == 404 and code != "persona_not_found":
        return "The server does not offer this. It may be an older palign, or none."
    if status >= 500:
        return f"The server failed ({status}). {_sentence(message)}".strip()
    return _sentence(message) or f"The server refused this ({status})."


def _sentence(message: str) -> str:
    message = message.strip()
    # "strength: 1 x alice ..." names the request's field, which nobody has written here.
    message = re.sub(r"^[a-z_.]+: ", "", message)
    if not message:
        return ""
    return (
        message[0].upper() + message[1:] + ("" if message.endswith((".", "?", "!", ")")) else ".")
    )


def applied(header: str | None) -> str:
    """The reply header in words: who answered, how strongly, what of it."""
    if header is None:
        return "plain: nothing was steered"
    found = _HEADER.fullmatch(header)
    if found is None:
        return header
    names = []
    for part in found["parts"].split("+"):
        name, _, weight = part.partition("*")
        who, _, digest = name.partition("@")
        names.append(
            f"{number(float(weight))} × {who} ({digest})" if weight else f"{who} ({digest})"
        )
    return (
        f"{' + '.join(names)} at strength {number(float(found['strength']))}, "
        f"{_SCOPES.get(found['scope'], found['scope'])}"
    )


def number(value: float) -> str:
    """Short, with a real minus."""
    return f"{value:.4g}".replace("-", "−")


def listed(value: object) -> list[Any]:
    """A list in a persona's free ``fit``; nothing for anything else."""
    return value if isinstance(value, list) else []


def expectation(persona: Mapping[str, Any]) -> Iterator[str]:
    """What a persona that was just made lets one expect, sentence by sentence."""
    fit = persona.get("fit") or {}
    expected = fit.get("expected_alignment", fit.get("alignment"))
    if isinstance(expected, (int, float)):
        yield (
            f"Expected alignment {number(expected)}: how closely what the model leans to should follow the person, "
            "on statements that were not asked (0 is chance, 1 would be perfect)."
        )
    if fit.get("weak") and "sliders" in fit:
        yield "That is weak: chance alone may follow the values as well. A larger model may follow better."
    elif fit.get("weak"):
        yield "That is weak: many a stranger's persona would follow as well. More answers make a clearer persona."
    # "weak: ..." says the same once more.
    for warning in listed(fit.get("warnings")):
        if not str(warning).startswith("weak:"):
            yield _sentence(str(warning))
