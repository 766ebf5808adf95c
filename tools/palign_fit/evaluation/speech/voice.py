"""Two things that a reader of an answer sees at once: that a machine speaks, and that it goes in circles."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vllm_palign.directions.numbers import Reals

_MACHINE = re.compile(
    r"""
    \bas\ an?\ (?:\w+\ ){0,2}(?:ai|a\.i\.|artificial\ intelligence|chat\s?bot|bot|(?:large\ )?language\ model
        |(?:virtual|digital|ai)\ assistant|(?:computer|machine|program|software)\b)
    | \b(?:i\ am|i'm|i’m|me,|being|i\ was\ created\ as)\ (?:just\ |only\ |simply\ |merely\ )?an?\ (?:\w+[\ -]){0,3}?
        (?:ai\b|artificial\ intelligence|chat\s?bot|bot\b|language\ model|virtual\ assistant|digital\ assistant
        |(?:computer|machine)\ program)
    | \b(?:i\ am|i'm|i’m)\ (?:just\ |only\ |simply\ |merely\ )?a\ (?:\w+\ )?(?:computer|machine|robot|software)\b(?!\ (?:\w+ist|\w+[eo]r|science|geek|nerd)\b)
    | \blanguage\ model\b | \bAI\ (?:assistant|model|language) | \b(?:trained|developed|created)\ by\ (?:openai|alibaba|
        anthropic|google|hugging\s?face|meta\ ai)
    | \bi\ (?:do\ not|don't|don’t|can't|can’t|cannot|can\ not)\ (?:\w+\ ){0,2}?(?:have|possess|experience|feel)\ (?:any\ |real\ |
        human\ |the\ ability\ to\ have\ |a\ |an\ )*(?:personal|physical|feelings?\b|emotions?\b|consciousness|
        body\b|human\ emotions?|subjective)
    | \bi\ (?:do\ not|don't|don’t)\ have\ (?:\w+\ ){0,2}(?:feelings|emotions|experiences|preferences|opinions)\b
    | \bals\ (?:eine?\ )?(?:\w+\ ){0,2}?(?:ki\b|k\.i\.|künstliche\ intelligenz|sprachmodell|ki-\w+|chatbot|
        (?:virtueller|digitaler)\ assistent|computerprogramm)
    | \bich\ bin\ (?:nur\ |lediglich\ |bloß\ )?(?:ein|eine)\ (?:\w+\ ){0,2}?(?:ki\b|künstliche\ intelligenz|
        sprachmodell|ki-\w+|chatbot|computer\w*|maschine|programm|roboter|(?:virtueller|digitaler)\ assistent)
    | \b(?:sprachmodell)\b
    | \bich\ habe\ keine\ (?:\w+\ und\ )?(?:persönlichen|eigenen|echten|menschlichen|gefühle|emotionen)
    """,
    re.IGNORECASE | re.VERBOSE,
)


def machine(said: str) -> bool:
    """Whether the answer says that no person speaks, in English or German."""
    return _MACHINE.search(" ".join(said.split())) is not None


def repeated(said: str) -> float:
    """Share of the answer's runs of four words that occurred in it before; 0 of an answer without any."""
    words = re.findall(r"\w+", said.lower())
    runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def shares(answers: Sequence[Sequence[str]]) -> tuple[Reals, Reals]:
    """Of each person's answers, how many are a machine's, and the mean share of repeated runs: float64 [S] each."""
    return (
        np.array([np.mean([machine(one) for one in said]) for said in answers]),
        np.array([np.mean([repeated(one) for one in said]) for said in answers]),
    )
