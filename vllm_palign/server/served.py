"""The names this server answers to as ``model``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from vllm_palign.errors import PersonaInvalid
from vllm_palign.persona import is_persona_id

_logger = logging.getLogger("vllm.palign")
_warned: set[str] = set()


def names(state: Any) -> list[str]:
    """Models and adapters that are loaded. Warns, once each, of those that a persona's name would hide behind."""
    models = state.openai_serving_models
    found = [*(path.name for path in models.base_model_paths), *models.lora_requests]
    for name in found:
        if "@" in name:
            warn_if_hidden(name, found)
    return found


async def resolved(state: Any, model: object) -> list[str]:
    """``names``, and the base of ``model`` if it is an adapter that vLLM would load now, on first use."""
    found = names(state)
    if not isinstance(model, str) or model in found:
        return found
    base, _, name = model.rpartition("@")
    models = state.openai_serving_models
    if base and base not in found and is_persona_id(name) and _loads_on_use(models):
        try:
            await models.resolve_lora(base)
        except Exception as error:
            # A resolver is somebody's own code; vLLM would ask it again, and may get another answer.
            _logger.exception("palign: the adapter %r cannot be loaded", base)
            raise PersonaInvalid(
                f"model: the adapter {base[:80]!a} cannot be loaded now; the server's log says why",
                param="model",
            ) from error
        found = names(state)
    return found


def any_model() -> bool:
    """Whether vLLM has been told to answer to every name."""
    from vllm import envs

    return bool(envs.VLLM_SKIP_MODEL_NAME_VALIDATION)


def _loads_on_use(models: Any) -> bool:
    from vllm import envs

    return bool(envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING and models.lora_resolvers)


def warn_if_hidden(name: str, served: Sequence[str]) -> None:
    """Log, once, that ``name`` does not ask for the persona that it seems to name."""
    base, _, persona = name.rpartition("@")
    if base in served and is_persona_id(persona) and name not in _warned:
        _warned.add(name)
        _logger.warning(
            "palign: %r is the name of a model or an adapter here, so it does not ask for the persona %r; use the "
            'field "persona", or load the adapter under another name',
            name,
            persona,
        )
