"""Texts side by side, their keys and values kept: only what is put on at the end is computed, steered or not.

What a server does under scope ``answers``: a prompt is read plainly, once for everybody who has it, and each
person's offsets are added from its last token on. Letters: B rows, C columns there, T columns put on, V words.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel
    from vllm_palign.persona import Persona

Tokens = Sequence[int]

_WORTH_SHARING = 8
"""Tokens from which on it pays to read what several texts begin with by itself."""


@dataclass(frozen=True, eq=False)
class Dose:
    """A persona at a strength; offsets are multiplied by strength x alpha."""

    persona: Persona
    strength: float

    def row(self, model: OpenedModel, layer: int) -> Any:
        """What is added to the input of the layer's projection: float32 [H * D]."""
        import torch

        row = torch.zeros(model.num_heads, model.head_dim)
        scale = np.float32(self.strength * self.persona.alpha)
        for k in np.flatnonzero(self.persona.layers == layer):
            row[int(self.persona.heads[k])] = torch.from_numpy(scale * self.persona.offsets[k])
        return row.flatten()


class Rows:
    """A batch of B texts that grow. ``real`` int64 [B, C], 0 on padding; padding is on the left of what was put
    on, so that the last column is everybody's last token."""

    def __init__(self, model: OpenedModel, count: int) -> None:
        import torch

        self.model = model
        self.real = torch.zeros(count, 0, dtype=torch.long, device=model.device)
        self._cache: Any = None
        self._added: Mapping[int, Any] = {}

    @classmethod
    def of(cls, model: OpenedModel, texts: Sequence[Tokens]) -> Rows:
        """One row a text (at least one token each), unsteered; equal texts, and what all begin with, are read
        once."""
        distinct = list(dict.fromkeys(tuple(text) for text in texts))
        first, last = min(distinct), max(distinct)
        shortest = min(map(len, distinct))
        same = next((n for n in range(shortest) if first[n] != last[n]), shortest)
        same = min(same, shortest - 1) if len(distinct) > 1 else 0
        if same >= _WORTH_SHARING:
            rows = cls(model, 1)
            rows.put([first[:same]])
            rows = rows.select([0] * len(distinct))
        else:
            same, rows = 0, cls(model, len(distinct))
        rows.put([text[same:] for text in distinct])
        places = {text: place for place, text in enumerate(distinct)}
        wanted = [places[tuple(text)] for text in texts]
        return rows if wanted == list(range(len(distinct))) else rows.select(wanted)

    def __len__(self) -> int:
        return len(self.real)

    def select(self, rows: Sequence[int]) -> Rows:
        """A batch of some of these rows, in that order; a row may be taken more than once. This one stays as it
        is."""
        import torch

        index = torch.tensor(list(rows), dtype=torch.long, device=self.real.device)
        chosen = Rows(self.model, 0)
        chosen.real = self.real[index]
        chosen._cache = copy.copy(self._cache)
        if chosen._cache is not None:
            # The layers' tensors are replaced by those of the chosen rows, never written to.
            chosen._cache.layers = [copy.copy(layer) for layer in self._cache.layers]
            chosen._cache.batch_select_indices(index)
        chosen._added = {layer: added[index] for layer, added in self._added.items()}
        return chosen

    def steer(self, doses: Sequence[Dose | None]) -> None:
        """From here on every token that is put on a row is steered by the row's dose."""
        import torch

        layers = {int(one) for dose in doses if dose is not None for one in dose.persona.layers}
        none = torch.zeros(self.model.num_heads * self.model.head_dim)
        keys = [None if dose is None else (id(dose.persona), dose.strength) for dose in doses]
        by_key = dict(zip(keys, doses, strict=True))
        self._added = {}
        for layer in sorted(layers):
            rows = {
                key: none if dose is None else dose.row(self.model, layer)
                for key, dose in by_key.items()
            }
            stacked = torch.stack([rows[key] for key in keys])
            self._added[layer] = stacked.to(self.model.device)

    def put(self, texts: Sequence[Tokens], keep: int = 1) -> Any:
        """Read ``texts``, one a row, at the rows' ends; a row may get none. Logits [B, keep, V] of what follows the
        last ``keep`` columns: they mean nothing on padding."""
        import torch

        width, device = max(map(len, texts)), self.model.device
        ids = torch.tensor([[0] * (width - len(text)) + list(text) for text in texts])
        real = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
        self.real = torch.cat([self.real, real.to(device)], dim=1)
        places = (self.real.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        with torch.inference_mode(), self._steered():
            out = self.model.model(
                input_ids=ids.to(device),
                attention_mask=self.real,
                position_ids=places,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        self._cache = out.past_key_values
        return out.logits[:, -keep:]

    @contextmanager
    def _steered(self) -> Iterator[None]:
        handles = [
            self.model.projections[layer].register_forward_pre_hook(_adder(added))
            for layer, added in self._added.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _adder(added: Any) -> Any:
    """A forward pre-hook adding ``added`` float32 [B, H * D] to every token of a row."""

    def add(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] + added[:, None].to(args[0]), *args[1:])

    return add
