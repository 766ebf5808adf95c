"""Texts side by side, their keys and values kept: only what is put on at the end is computed, steered or not.

What a server does under scope ``answers``: a prompt is read plainly, once for everybody who has it, and each
person's offsets are added from its last token on. Letters: B rows, C columns there, T columns put on, V words.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from palign_fit.model.steer import stacked, steered_by

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel
    from vllm_palign.persona import Persona

Tokens = Sequence[int]

_WORTH_SHARING = 8
"""Tokens from which on it pays to read what several texts begin with by itself."""


Dose = tuple["Persona | None", float]
"""A persona, None for nobody, and its strength."""


class Rows:
    """A batch of B texts that grow. ``real`` int64 [B, C], 0 on padding; padding is on the left of what was put
    on, so that the last column is everybody's last token."""

    def __init__(self, model: OpenedModel, count: int) -> None:
        import torch

        self.model = model
        self.real = torch.zeros(count, 0, dtype=torch.long, device=model.device)
        self._cache: Any = None
        self._layers, self._heads, self._added = stacked(model, [(None, 0.0)] * count)

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
        chosen._layers, chosen._heads = self._layers, self._heads
        chosen._added = self._added[np.array(rows, dtype=np.int64)]
        return chosen

    def steer(self, doses: Sequence[Dose]) -> None:
        """From here on every token that is put on a row is steered by the row's dose. Raises InputError for a
        persona of another geometry."""
        self._layers, self._heads, self._added = stacked(self.model, doses)

    def put(self, texts: Sequence[Tokens], keep: int = 1) -> Any:
        """Read ``texts``, one a row, at the rows' ends; a row may get none. Logits [B, keep, V] of what follows the
        last ``keep`` columns: they mean nothing on padding."""
        import torch

        width, device = max(map(len, texts)), self.model.device
        ids = torch.tensor([[0] * (width - len(text)) + list(text) for text in texts])
        real = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])
        self.real = torch.cat([self.real, real.to(device)], dim=1)
        places = (self.real.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        with torch.inference_mode(), steered_by(self.model, self._layers, self._heads, self._added):
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
