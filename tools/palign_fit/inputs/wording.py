"""Item texts as what follows "I".

What can only be meant in one way is understood (``normalised``); what cannot follow "I" is refused
(``fault``); what probably does not is pointed out (``doubt``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from palign_fit.inputs.traits import ADJECTIVES


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_APOSTROPHE = re.compile(r"(?<=\w)[’ʼ´`‘＇](?=\w)|’")
_QUOTED = re.compile(r"[\"“„«](.*)[\"”“»]\.?")
_LEAD = re.compile(
    r"(?:\(?[A-Za-z]\)|\(?[Qq]?\d{1,4}(?:[.):]+|\s+[-–—])(?=\s|[A-Za-z])|[-–—•*](?=\s)|\.{3}|…)\s*"
)
"""Numbers, bullets and dots before a text."""

_REVERSED = re.compile(r"\s*\((?:R|reversed?|reverse[- ](?:scored|keyed))\)$")
"""What manuals write behind items keyed -; the column key says it here."""

_FIRST_PERSON = re.compile(
    r"i(?:(?P<am>'m|'am|m)|(?P<have>'?ve)|(?P<will>'ll)|(?P<would>'d))?\s+", re.IGNORECASE
)
_LONE_I = re.compile(r"(?<![\w'])i(?=$|[\s,;!?]|'(?:m|ve|d|ll)\b)")
_HAD = re.compile(
    r"(?:(?:always|never|ever|often|rarely|already|just|long) )?"
    r"(?:better|been|had|done|gone|seen|known|met|made|lost|found|felt|left|(?!\w*eed\b)\w+ed)\b"
)
"""What "I'd" stands before when it means "I had"."""

_THIRD_PERSON = {
    "is": "am", "isn't": "am not", "are": "am", "aren't": "am not", "has": "have",
    "hasn't": "have not", "does": "do", "doesn't": "don't",
}  # fmt: skip
_SUBJECTS = _words(
    "a an the my your his her its our their this that these those he she it we you they people "
    "others everyone everybody nobody someone somebody anyone anybody there who what why how which "
    "if when because although though while whenever unless until it's he's she's they're you're "
    "we're there's that's to"
)
"""First words after which "I" would be a second subject, or no subject at all."""

_POLES = frozenset(
    word for poles in ADJECTIVES.values() for pole in poles for word in pole.split(", ")
)
_DEGREES = _words("not very quite extremely fairly somewhat")
_SELDOM_AFTER_I = _words(
    "most some many few other every each all both no another any in at on for with without from by "
    "during before after since as"
)
_VERBS_IN_ING = _words("bring cling fling ping ring sing sling spring sting string swing willing")
"""And IPIP's "Willing to try anything once", which everybody uses as it is."""

_NO_THIRD_PERSON = _words("always sometimes perhaps besides nowadays afterwards was")
_VERBS_OF_OTHERS = _words("is are was were has makes")

_FOREIGN = _words(
    "ich mich mir und nicht oft sehr habe kann meine meinen wenn je suis j'ai mes avec dans souvent "
    "facilement yo gusta muy mucho tengo siento facilmente sono molto spesso altri mio miei sou "
    "muito gosto tenho minhas ik niet een vaak graag mijn het jag inte ofta jeg ikke jestem nie"
)
"""Frequent words of other languages that English does not have."""

_ELIDED = re.compile(r"(?:j|l|n|qu)'")
_BORROWED = _words("naïve café cafés cliché clichés résumé fiancé fiancée blasé risqué")
_ENGLISH = _words(
    "the a an of in and with for to that my not am don't do have can't feel get make like often "
    "easily people others things thing it at on about too when i"
)
_ENOUGH_TEXTS = 10


def normalised(text: str) -> str:
    """The form that follows "I ": "Make friends easily." and "I'm shy" -> "make friends easily", "am shy".

    Numbering, quotation marks, a final full stop and a pronoun of one's own are taken off.
    """
    text = _APOSTROPHE.sub("'", " ".join(text.split()))
    text = _REVERSED.sub("", _LEAD.sub("", text, count=1) if _LEAD.match(text) else text)
    quoted = _QUOTED.fullmatch(text)
    text = (quoted[1] if quoted else text).strip().rstrip(" .!…;,")
    if " " in text and text.isupper():
        text = text.lower()
    text = _without_pronoun(text)
    # Words such as "TV" or a name keep their capitals; only the sentence's first letter goes down.
    if text[1:2].islower() or not text[1:2].strip():
        text = text[:1].lower() + text[1:]
    return _LONE_I.sub("I", text)


def _without_pronoun(text: str) -> str:
    pronoun = _FIRST_PERSON.match(text)
    if pronoun is None:
        return text
    rest = text[pronoun.end() :]
    if pronoun["am"]:
        return f"am {rest}"
    if pronoun["have"]:
        return f"have {rest}"
    if pronoun["will"]:
        return f"will {rest}"
    if pronoun["would"]:
        return f"{'had' if _HAD.match(rest) else 'would'} {rest}"
    return rest


def fault(text: str) -> str | None:
    """Why a normalised ``text`` cannot follow "I", and what is wanted instead."""
    words = text.lower().split()
    first = words[0]
    if text.endswith("?"):
        return "is a question"
    if not first[0].isalpha():
        return f"begins with {first[:20]!r}"
    if first in _THIRD_PERSON:
        return f"speaks of a third person; for yourself it would be {_instead(text, _THIRD_PERSON[first])!r}"
    if first in _SUBJECTS and len(words) > 1:
        return f"does not go on from I, but begins with {first!r}"
    # "talkative", or "extraverted, enthusiastic": adjectives alone.
    parts = re.split(r",? and |, ?", text.lower())
    listed = len(parts[0].split()) == 1 and len(parts) > 1 and _POLES.issuperset(parts[1:])
    if first in _DEGREES or parts[0] in _POLES or listed:
        return f"has no verb; with one it would be {f'am {text}'[:60]!r}"
    return None


def doubt(text: str) -> str | None:
    """Why a normalised ``text`` without fault may still be no continuation of "I"."""
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower())
    for letter in text:
        if letter.isalpha() and "LATIN" not in unicodedata.name(letter, ""):
            return f"is not in English ({letter!r})"
    for word in words:
        if (
            word in _FOREIGN
            or _ELIDED.match(word)
            or not (word.isascii() or word.removesuffix("'s") in _BORROWED)
        ):
            return f"looks like another language than English ({word[:20]!r})"
    first = words[0] if words else ""
    if first in _SELDOM_AFTER_I:
        return f"begins with {first!r}, which seldom follows I"
    if words[1:2] and words[1] in _VERBS_OF_OTHERS:
        return f"seems to speak of {first[:20]!r}, not of oneself"
    if first.endswith("ing") and first not in _VERBS_IN_ING:
        return f"begins with {first[:20]!r}, which wants a verb before it"
    if (
        first.endswith("s")
        and not first.endswith(("ss", "us", "is"))
        and first not in _NO_THIRD_PERSON
    ):
        return f"begins with {first[:20]!r}, which looks like a third person's verb"
    return None


def common_doubt(texts: Sequence[str]) -> str | None:
    """What all ``texts`` together look like, where single ones are too short to tell."""
    english = sum(not _ENGLISH.isdisjoint(text.lower().split()) for text in texts)
    if len(texts) >= _ENOUGH_TEXTS and english < len(texts) / 10:
        return (
            f"{len(texts) - english} of {len(texts)} texts hold none of the commonest English words"
        )
    return None


def _instead(text: str, verb: str) -> str:
    return f"{verb} {text.partition(' ')[2]}".strip()[:60]
