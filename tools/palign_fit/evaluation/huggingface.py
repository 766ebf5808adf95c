"""The Hugging Face backend: the model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from palign_fit.errors import InputError
from palign_fit.evaluation import texts
from palign_fit.evaluation.tasks import Setting, Speech, Task
from palign_fit.model.likelihood import reader_for
from palign_fit.model.model import OpenedModel
from palign_fit.model.steer import steered, steered_rows
from palign_fit.progress import Tick
from vllm_palign.directions.numbers import Reals

MAX_ROWS = 64
"""Answers that are generated in one batch."""


class HuggingFaceBackend:
    """Runs tasks one after the other on an opened model; personas at ``strength`` where a setting names none."""

    def __init__(self, model: OpenedModel, strength: float = 1.0) -> None:
        self.model = model
        self.tokenizer = model.tokenizer
        self.model_name = model.base_model
        self.strength = strength
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
        read = reader_for(self.model)
        results = []
        for task in tasks:
            with self._under(task.setting):
                results.append(read(self.model, task.prefix, task.continuations))
            tick(1)
        return results

    def speak(self, speeches: Sequence[Speech], max_tokens: int, tick: Tick) -> list[str]:
        """MAX_ROWS in one batch, each under its own setting."""
        answers = [""] * len(speeches)
        by_scope: dict[str, list[int]] = {}
        for place, speech in enumerate(speeches):
            by_scope.setdefault(speech.setting.scope, []).append(place)
        for scope, places in by_scope.items():
            for start in range(0, len(places), MAX_ROWS):
                batch = places[start : start + MAX_ROWS]
                settings = [speeches[place].setting for place in batch]
                prompts = [
                    texts.chat(self.tokenizer, speeches[place].question, setting.system)
                    for place, setting in zip(batch, settings, strict=True)
                ]
                rows = [(setting.persona, self._strength(setting)) for setting in settings]
                # Padded on the left: the last prompt token of every row stands in this column.
                last = max(map(len, prompts)) - 1
                with steered_rows(self.model, rows, first=last if scope == "answers" else 0):
                    said = self._generate(prompts, max_tokens)
                for place, text in zip(batch, said, strict=True):
                    answers[place] = text
                tick(len(batch))
        return answers

    def as_json(self) -> dict[str, Any]:
        dtype = str(self.model.model.dtype).removeprefix("torch.")
        return {"kind": "huggingface", "dtype": dtype, "device": str(self.model.device)}

    def _under(self, setting: Setting) -> AbstractContextManager[Any]:
        persona = setting.persona
        return steered(self.model, persona, self._strength(setting)) if persona else nullcontext()

    def _strength(self, setting: Setting) -> float:
        return self.strength if setting.strength is None else setting.strength

    def _generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
        import torch

        padding = self.tokenizer.pad_token_id
        padding = self.tokenizer.eos_token_id if padding is None else padding
        padding = padding or 0
        longest = max(map(len, prompts))
        # Padded on the left: generation goes on from the right end.
        ids = [[padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        device = self.model.device
        out = self.model.model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(real, device=device),
            max_new_tokens=max_tokens,
            do_sample=False,
            pad_token_id=padding,
            # A checkpoint's own sampling defaults mean nothing to a greedy run and would warn.
            temperature=None,
            top_p=None,
            top_k=None,
        )
        return [self._text(ids) for ids in out[:, longest:].tolist()]

    def _text(self, ids: Sequence[int]) -> str:
        """Ends, as a server's, before a character that the last tokens left unfinished."""
        for end in range(len(ids), 0, -1):
            text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=True))
            if not text.endswith("\ufffd"):
                return text.strip()
        return ""
