"""One batch of four, a plain request among three steered ones, as every feature is asked to answer it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import oracle
from tests.engine.families import Family
from tests.engine.models import random_persona, random_prompt

WISHES: dict[str, Any] = {
    "plain": None,
    "alice": {"id": "alice", "strength": 1.2},
    "bob": {"id": "bob", "strength": -0.8, "scope": "all"},
    "blend": {"mix": {"alice": 0.7, "bob": 0.4}, "scope": "answers"},
}


class MixedBatch:
    """The requests, and what plain Hugging Face with ``o_proj.bias += W_o d`` says about the answers."""

    def __init__(self, folder: Path, model: Path, family: Family) -> None:
        self.model = model
        self.files = {who: str(folder / f"{who}.safetensors") for who in ("alice", "bob")}
        alice, bob = (
            random_persona(Path(file), seed=seed, family=family)
            for seed, file in enumerate(self.files.values())
        )
        self.blends: dict[str, oracle.Blend] = {
            "plain": {},
            "alice": {alice: 1.2},
            "bob": {bob: -0.8},
            "blend": {alice: 0.7, bob: 0.4},
        }
        self.family = family

    def requests(
        self, prompt: Callable[[int], list[int]] = random_prompt, **options: Any
    ) -> list[dict[str, Any]]:
        """One of each wish; ``prompt(seed)`` makes their prompts."""
        return [
            {"prompt": prompt(seed), "persona": wish, **options}
            for seed, wish in enumerate(WISHES.values())
        ]

    def greedy(self, reference: Any, request: dict[str, Any], count: int) -> list[int]:
        """The answer of ``count`` tokens that the reference method would give."""
        tokens: list[int] = []
        start = oracle.first_steered(request["persona"], request["prompt"])
        with oracle.steered(reference, self.blend(request), self.family.projection, start):
            for _ in range(count):
                # The last token only makes room for the one before it.
                table = oracle.distributions(reference, [*request["prompt"], *tokens, 0])
                tokens.append(int(table[-1].argmax()))
        return tokens

    def blend(self, request: dict[str, Any]) -> oracle.Blend:
        return self.blends[_wish(request)]

    def errors(
        self, requests: list[dict[str, Any]], answers: list[dict[str, Any]], reference: Any = None
    ) -> dict[str, float]:
        """Largest |log-probability difference| for each wish, and under ``effect`` the least that steering
        moved the log-probabilities of a steered answer.

        A greedy answer must be what the reference method would choose, up to ties.
        """
        reference = reference or oracle.load_hf(self.model)
        errors: dict[str, float] = {}
        effects = []
        each = [request for request in requests for _ in range(_samples(request))]
        for request, answer in zip(each, answers, strict=True):
            wish = _wish(request)
            prompt, tokens = request["prompt"], answer["tokens"]
            stock = oracle.distributions(reference, prompt + tokens)
            start = oracle.first_steered(request["persona"], prompt)
            with oracle.steered(reference, self.blends[wish], self.family.projection, start):
                wanted = oracle.distributions(reference, prompt + tokens)
            rows = len(answer["distributions"])
            error = oracle.error(answer["distributions"], wanted[-rows:])
            if "sampling" not in request:
                # Two distributions that differ by ``error`` may choose among tokens within twice that.
                said = wanted[len(prompt) - 1 :]
                short = said.max(-1) - said[range(len(tokens)), tokens]
                assert float(short.max()) <= 2 * error
            errors[wish] = max(error, errors.get(wish, 0.0))
            if self.blends[wish]:
                effects.append(oracle.error(wanted, stock))
        return errors | ({"effect": min(effects)} if effects else {})


def _wish(request: dict[str, Any]) -> str:
    return next(name for name, wish in WISHES.items() if wish == request["persona"])


def _samples(request: dict[str, Any]) -> int:
    return int(request.get("sampling", {}).get("n", 1))
