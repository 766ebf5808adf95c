"""Answers in the model's own words, from the model in this process or from a palign server."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from palign_fit.evaluation import texts
from palign_fit.evaluation.client import run_all
from palign_fit.evaluation.server import ServedModel
from palign_fit.evaluation.tasks import Setting, Tick
from palign_fit.model.model import OpenedModel
from palign_fit.model.steer import steered

if TYPE_CHECKING:
    from openai import AsyncOpenAI


@dataclass(frozen=True, eq=False)
class Speech:
    """One question asked under one setting."""

    setting: Setting
    question: str


class Speaker(Protocol):
    """Something that answers questions, the likeliest word at every step, so that runs repeat."""

    model_name: str

    def speak(self, speeches: Sequence[Speech], max_tokens: int, tick: Tick) -> list[str]:
        """The answers in order, without special tokens. ``tick`` hears of every one."""
        ...

    def as_json(self) -> dict[str, Any]: ...


class HuggingFaceSpeaker:
    """Generates on an opened model, all questions of a setting in one batch."""

    def __init__(self, model: OpenedModel, strength: float) -> None:
        self.model, self.strength = model, strength
        self.model_name = model.base_model

    def speak(self, speeches: Sequence[Speech], max_tokens: int, tick: Tick) -> list[str]:
        answers = [""] * len(speeches)
        groups: dict[int, list[int]] = {}
        for at, one in enumerate(speeches):
            groups.setdefault(id(one.setting), []).append(at)
        for places in groups.values():
            setting = speeches[places[0]].setting
            prompts = [
                texts.chat(self.model.tokenizer, speeches[at].question, setting.system)
                for at in places
            ]
            inside = (
                steered(self.model, setting.persona, self.strength)
                if setting.persona
                else nullcontext()
            )
            with inside:
                said = self._generate(prompts, max_tokens)
            for at, text in zip(places, said, strict=True):
                answers[at] = text
            tick(len(places))
        return answers

    def as_json(self) -> dict[str, Any]:
        dtype = str(self.model.model.dtype).removeprefix("torch.")
        return {"kind": "huggingface", "dtype": dtype, "device": str(self.model.device)}

    def _generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
        import torch

        tokenizer = self.model.tokenizer
        padding = tokenizer.pad_token_id
        padding = tokenizer.eos_token_id if padding is None else padding
        padding = padding or 0
        longest = max(map(len, prompts))
        # Padded on the left: generation goes on from the right end.
        ids = [[padding] * (longest - len(one)) + list(one) for one in prompts]
        real = [[0] * (longest - len(one)) + [1] * len(one) for one in prompts]
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
            text = str(self.model.tokenizer.decode(ids[:end], skip_special_tokens=True))
            if not text.endswith("\ufffd"):
                return text.strip()
        return ""


class ServerSpeaker:
    """Asks a palign server over chat completions, many questions at once."""

    def __init__(self, served: ServedModel) -> None:
        self.served = served
        self.model_name = served.model_name

    def speak(self, speeches: Sequence[Speech], max_tokens: int, tick: Tick) -> list[str]:
        async def ask(one: Speech, client: AsyncOpenAI) -> str:
            messages: Any = texts.messages(one.question, one.setting.system)
            raw = await client.chat.completions.with_raw_response.create(
                model=self.model_name,
                messages=messages,
                max_tokens=max_tokens,
                temperature=0,
                extra_body=self.served.body(one.setting),
            )
            self.served.check(one.setting, raw.headers)
            tick(1)
            return (raw.parse().choices[0].message.content or "").strip()

        calls = [partial(ask, one) for one in speeches]
        return run_all(calls, self.served.open, self.served.in_flight)

    def as_json(self) -> dict[str, Any]:
        return self.served.as_json()
