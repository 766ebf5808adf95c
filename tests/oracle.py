"""The reference method in plain Hugging Face: ``o_proj.bias += W_o d`` (PAlign/pas.py ``set_activate``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vllm_palign import Persona

Blend = Mapping[Persona, float] | Sequence[tuple[Persona, float]]
"""Personas and strength x weight of each."""

LLAMA = "model.layers.{}.self_attn.o_proj"
"""Where the attention output projection of a layer is, in most families."""


def load_hf(path: Path, *, exact_gelu: bool = False) -> Any:
    """The checkpoint as Hugging Face runs it, float32, plain attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if exact_gelu:
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if type(child).__name__ == "BloomGelu":
                    setattr(parent, name, torch.nn.GELU())
    return model


def displacements(blend: Blend) -> dict[int, torch.Tensor]:
    """Layer -> d float64 [H*D], what its concatenated heads are moved by; steered layers only."""
    moved: dict[int, np.ndarray] = {}
    for persona, scale in blend.items() if isinstance(blend, Mapping) else blend:
        for layer, head, offset in zip(persona.layers, persona.heads, persona.offsets, strict=True):
            rows = moved.setdefault(int(layer), np.zeros((persona.num_heads, persona.head_dim)))
            rows[head] += scale * persona.alpha * offset.astype(np.float64)
    return {layer: torch.from_numpy(rows.reshape(-1)) for layer, rows in moved.items()}


@contextmanager
def steered(model: Any, blend: Blend, projection: str = LLAMA, start: int = 0) -> Iterator[None]:
    """The bias of every attention output projection shifted by W_o d, for the tokens from ``start`` on; put
    back at the end."""
    if start:
        # A bias is every token's.
        with steered_input(model, blend, projection, start):
            yield
        return
    before = []
    for layer, moved in displacements(blend).items():
        module = model.get_submodule(projection.format(layer))
        weight = module.weight.double()
        # transformers' Conv1D (GPT-2) keeps its weight transposed.
        shift = moved @ weight if type(module).__name__ == "Conv1D" else weight @ moved
        before.append((module, module.bias))
        bias = shift if module.bias is None else module.bias.double() + shift
        module.bias = torch.nn.Parameter(bias.detach().to(module.weight.dtype), requires_grad=False)
    try:
        yield
    finally:
        for module, bias in before:
            module.bias = bias


@contextmanager
def steered_input(
    model: Any, blend: Blend, projection: str = LLAMA, start: int = 0
) -> Iterator[None]:
    """The same by its definition, d added to the projection's input, of the tokens from ``start`` on. For
    projections that do something to their input first, where a bias would be another thing."""

    def add(moved: torch.Tensor) -> Any:
        def hook(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            shift = torch.zeros_like(args[0])
            shift[..., start:, :] = moved.to(shift.dtype)
            return (args[0] + shift, *args[1:])

        return hook

    handles = [
        model.get_submodule(projection.format(layer)).register_forward_pre_hook(add(moved))
        for layer, moved in displacements(blend).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def distributions(model: Any, tokens: Sequence[int], last: int = 0) -> np.ndarray:
    """Log-probabilities float64 [T-1, V] of what may follow each token but the last one; with ``last``,
    only of the ``last`` tokens' places."""
    keep = {"logits_to_keep": last + 1} if last else {}
    logits = model(torch.tensor([list(tokens)]), use_cache=False, **keep).logits
    return torch.log_softmax(logits[0, :-1].double(), dim=-1).numpy()


def table(
    model: Any, tokens: Sequence[int], blend: Blend = (), last: int = 0, start: int = 0
) -> np.ndarray:
    """``distributions`` of the model steered by ``blend``, from the token ``start`` on."""
    with steered(model, blend, start=start):
        return distributions(model, tokens, last)


def logprobs(model: Any, tokens: Sequence[int], blend: Blend = (), start: int = 0) -> np.ndarray:
    """Log-probability of every token but the first given those before it, [T-1] float64."""
    return _own(table(model, tokens, blend, start=start), tokens[1:])


def greedy(
    model: Any,
    prompt: Sequence[int],
    answer: Sequence[int],
    blend: Blend = (),
    start: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Of every token of the answer: its log-probability, and the best one's at its place. Both [T] float64.
    Steered from ``start`` on, None: from the prompt's last token, as without an earlier answer."""
    start = len(prompt) - 1 if start is None else start
    rows = table(model, [*prompt, *answer], blend, last=len(answer), start=start)
    return _own(rows, answer), rows.max(-1)


def continuation(
    model: Any, prompt: Sequence[int], count: int, blend: Blend = (), start: int | None = None
) -> list[int]:
    """The ``count`` likeliest tokens, one after the other; ``start`` as of ``greedy``."""
    start = len(prompt) - 1 if start is None else start
    tokens: list[int] = []
    for _ in range(count):
        rows = table(model, [*prompt, *tokens, 0], blend, last=1, start=start)
        tokens.append(int(rows[0].argmax()))
    return tokens


def first_steered(persona: Any, prompt: Sequence[int]) -> int:
    """Where a request for ``persona`` begins to be steered, in a prompt of tokens and a server or engine whose
    default scope is "answers"."""
    scope = persona.get("scope") if isinstance(persona, Mapping) else None
    return 0 if scope == "all" else len(prompt) - 1


def error(got: list[list[float]] | np.ndarray, wanted: list[list[float]] | np.ndarray) -> float:
    """Largest absolute difference of log-probabilities."""
    found, wanted = np.asarray(got), np.asarray(wanted)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return float(np.abs(found - wanted).max())


def _own(rows: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """What ``rows`` [T, V] give the ``tokens`` [T] that are there."""
    return np.take_along_axis(rows, np.asarray(tokens)[:, None], axis=1)[:, 0]
