"""Which model personas were fitted on, told by name and, where names differ, by what the model does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from palign_fit.model.chats import Chats
from palign_fit.model.model import model_dtype
from vllm_palign.persona import Persona, model_name

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel

_SAME, _SAME_ROUNDED = 1e-3, 1e-2
"""By how much the perplexity of chats may differ on one checkpoint, as a part of it: from one machine to
another, and from one dtype to another."""


def foreign_models(model: OpenedModel, personas: Sequence[Persona]) -> list[str]:
    """Names of the models that ``personas`` were fitted on and that are not ``model``, sorted.

    One checkpoint may lie under many paths. So a persona under another name still is of this model if it
    records the perplexity of chats that this model has.
    """
    others = [one for one in personas if model_name(one.base_model) != model_name(model.base_model)]
    if not others:
        return []
    plain = Chats(model).plain
    return sorted({model_name(one.base_model) for one in others if not _records(one, plain, model)})


def _records(persona: Persona, plain: float, model: OpenedModel) -> bool:
    recorded = persona.fit.get("perplexity_plain")
    if not isinstance(recorded, float) or not math.isfinite(plain):
        return False
    rounded = persona.fit.get("dtype") != model_dtype(model)
    return abs(recorded - plain) <= (_SAME_ROUNDED if rounded else _SAME) * plain
