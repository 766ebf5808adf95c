"""The Hugging Face backend: the model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from palign_fit.arrays import Reals
from palign_fit.errors import InputError
from palign_fit.evaluation.tasks import Task, Tick
from palign_fit.model.likelihood import reader_for
from palign_fit.model.model import OpenedModel
from palign_fit.model.steer import steered


class HuggingFaceBackend:
    """Runs tasks one after the other on an opened model; personas at ``strength``."""

    def __init__(self, model: OpenedModel, strength: float = 1.0) -> None:
        self.model = model
        self.tokenizer = model.tokenizer
        self.model_name = model.base_model
        self.strength = strength
        self._read = reader_for(model)
        config = model.model.config.get_text_config(decoder=True)
        self._longest = int(getattr(config, "max_position_embeddings", None) or 2**31)

    def score(self, tasks: Sequence[Task], tick: Tick) -> list[list[Reals]]:
        for task in tasks:
            length = len(task.prefix) + max(map(len, task.continuations))
            if length > self._longest:
                raise InputError(
                    f"a prompt has {length} tokens, {self.model.base_model} reads at most "
                    f"{self._longest}; leave few-shot out of --conditions"
                )
        results = []
        for task in tasks:
            persona = task.setting.persona
            with steered(self.model, persona, self.strength) if persona else nullcontext():
                results.append(self._read(self.model, task.prefix, task.continuations))
            tick(1)
        return results

    def as_json(self) -> dict[str, Any]:
        dtype = str(self.model.model.dtype).removeprefix("torch.")
        return {"kind": "huggingface", "dtype": dtype, "device": str(self.model.device)}
