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
from palign_fit.model.prompts import chat_prefix
from palign_fit.model.rows import Dose
from palign_fit.model.speaking import Line, Speaker, conversations
from palign_fit.model.steer import steered
from palign_fit.progress import Tick
from vllm_palign.directions.numbers import Reals


class HuggingFaceBackend:
    """Runs tasks one after the other on an opened model; personas at ``strength``."""

    def __init__(self, model: OpenedModel, strength: float = 1.0) -> None:
        self.model = model
        self.tokenizer = model.tokenizer
        self.model_name = model.base_model
        self.strength = strength
        self._speaker = Speaker(model)
        config = model.model.config.get_text_config(decoder=True)
        self._longest = int(getattr(config, "max_position_embeddings", None) or 2**31)

    def score(self, tasks: Sequence[Task], tick: Tick) -> list[list[Reals]]:
        for task in tasks:
            self._check(
                len(task.prefix) + max(map(len, task.continuations)),
                "leave few-shot out of --conditions",
            )
        read = reader_for(self.model)
        results = []
        for task in tasks:
            with self._under(task.setting):
                results.append(read(self.model, task.prefix, task.continuations))
            tick(1)
        return results

    def speak(self, speeches: Sequence[Speech], max_tokens: int, tick: Tick) -> list[str]:
        """Many in one batch, whatever their settings."""
        lines = [self._line(one.setting, one.question) for one in speeches]
        self._check(
            max(len(line.prompt) for line in lines) + max_tokens,
            "a shorter system prompt (few-shot is long), or fewer tokens of an answer",
        )
        said = self._speaker.answers(lines, max_tokens, tick)
        return [self._text(ids) for ids in said]

    def converse(
        self,
        settings: Sequence[Setting],
        users: Sequence[Sequence[str]],
        max_tokens: int,
        tick: Tick,
    ) -> list[list[str]]:
        """Side by side, keys and values kept from turn to turn."""
        firsts = [
            self._line(setting, said[0]) for setting, said in zip(settings, users, strict=True)
        ]
        later = [
            [texts.next_turn(self.tokenizer, line, setting.system) for line in said[1:]]
            for setting, said in zip(settings, users, strict=True)
        ]
        self._check(
            max(
                len(first.prompt) + sum(map(len, own)) + max_tokens * (len(own) + 1)
                for first, own in zip(firsts, later, strict=True)
            ),
            "fewer turns, or fewer tokens of an answer",
        )
        said = conversations(self.model, firsts, later, max_tokens, tick)
        return [[self._text(ids) for ids in answers] for answers in said]

    def dose(self, setting: Setting) -> Dose:
        """How the setting's persona steers here."""
        return setting.persona, self.strength if setting.strength is None else setting.strength

    def as_json(self) -> dict[str, Any]:
        dtype = str(self.model.model.dtype).removeprefix("torch.")
        return {"kind": "huggingface", "dtype": dtype, "device": str(self.model.device)}

    def _line(self, setting: Setting, user: str) -> Line:
        prompt = chat_prefix(self.tokenizer, user, setting.system)
        return Line(tuple(prompt), self.dose(setting), setting.scope == "all")

    def _check(self, length: int, instead: str) -> None:
        """Raises InputError for more tokens than the model reads."""
        if length > self._longest:
            raise InputError(
                f"a prompt and its answer take up to {length} tokens, {self.model.base_model} reads at most "
                f"{self._longest}; {instead}"
            )

    def _under(self, setting: Setting) -> AbstractContextManager[Any]:
        persona, strength = self.dose(setting)
        return steered(self.model, persona, strength) if persona else nullcontext()

    def _text(self, ids: Sequence[int]) -> str:
        """Ends, as a server's, before a character that the last tokens left unfinished."""
        for end in range(len(ids), 0, -1):
            text = str(self.tokenizer.decode(ids[:end], skip_special_tokens=True))
            if not text.endswith("\ufffd"):
                return text.strip()
        return ""
