"""Offsets of running requests on the device, and which token uses which of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vllm_palign.effect import Effect


@dataclass(frozen=True)
class BankShape:
    """``layers`` are the armed decoder layers of this rank in order; ``num_heads`` and ``first_head``
    the query heads of this tensor-parallel rank; ``slots`` rows besides the neutral one."""

    layers: tuple[int, ...]
    num_heads: int
    first_head: int
    head_dim: int
    slots: int
    tokens: int


class OffsetBank:
    """Rows [L, S+1, H*D] in the model's dtype, and a slot for each token of the step.

    One row per distinct effect in the running batch. Row 0 stays zeros, so padding, dummy runs and
    plain requests need no branch. A step never holds more distinct effects than requests, and there
    are as many rows as requests: a full table cannot happen, whatever waits or is preempted, because
    only the requests of the *current* step hold a row. Rows of others are kept while there is room
    and reused least-recently-used first; their content is still on the host, with the request.
    """

    def __init__(self, shape: BankShape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        width = shape.num_heads * shape.head_dim
        self.rows = torch.zeros(
            len(shape.layers), shape.slots + 1, width, dtype=dtype, device=device
        )
        self.token_slots = torch.zeros(shape.tokens, dtype=torch.int32, device=device)
        self._positions = torch.arange(shape.tokens, dtype=torch.int32, device=device)
        self._row_of_layer = {layer: index for index, layer in enumerate(shape.layers)}
        self._requests: dict[str, Effect] = {}
        self._slot_of: OrderedDict[str, int] = OrderedDict()
        self._free = list(range(shape.slots, 0, -1))
        self._steady: list[str] | None = None
        """Requests of the last step if each had one token: their slots are what the device holds."""
        self._dirty_tokens = 0

    @property
    def num_requests(self) -> int:
        """Steered requests the bank remembers, running or waiting to be resumed."""
        return len(self._requests)

    @property
    def num_resident(self) -> int:
        """Rows in use or kept for reuse."""
        return len(self._slot_of)

    def usage(self) -> dict[str, int]:
        """Slots in ``total``, ``in_use`` by distinct effects of the requests it remembers, and
        ``resident``: filled, some of them kept for reuse. For metrics."""
        effects = {effect.key for effect in self._requests.values()}
        return {"total": self.shape.slots, "in_use": len(effects), "resident": self.num_resident}

    def admit(self, request_id: str, effect: Effect) -> None:
        """A steered request has arrived at this worker. The row is filled when it first runs."""
        self._requests[request_id] = effect
        self._steady = None

    def forget(self, request_id: str) -> None:
        """The request is over (finished, aborted, or preempted and coming back as a new one)."""
        self._requests.pop(request_id, None)
        self._steady = None

    def step(
        self, request_ids: Sequence[str], query_start_loc: torch.Tensor, num_tokens: int
    ) -> None:
        """Point each token of the coming forward pass at its request's row.

        ``request_ids`` in batch order (R); ``query_start_loc`` int32 [>= R+1] on the device, where
        token t belongs to request r if query_start_loc[r] <= t < query_start_loc[r+1].
        """
        if not self._requests and not self._dirty_tokens:
            return  # nobody is steered and every token is neutral already
        decode = num_tokens == len(request_ids)
        if decode and request_ids == self._steady:
            return
        self._steady = list(request_ids) if decode else None
        slots = self._place([self._requests.get(request_id) for request_id in request_ids])
        if not any(slots):
            self._clear(0)
            return
        by_request = self._to_device(np.asarray(slots, dtype=np.int32))
        if decode:
            self.token_slots[:num_tokens].copy_(by_request, non_blocking=True)
        else:
            owner = torch.searchsorted(
                query_start_loc[1 : len(slots) + 1],
                self._positions[:num_tokens],
                right=True,
            )
            self.token_slots[:num_tokens].copy_(by_request[owner.clamp_(max=len(slots) - 1)])
        self._clear(num_tokens)

    def fill(self, slot: int, layer_rows: torch.Tensor) -> None:
        """Overwrite one row on all layers with ``layer_rows`` [L, H*D] (any float dtype, host)."""
        host = layer_rows.to(self.rows.dtype)
        if self.rows.is_cuda:
            host = host.pin_memory()
        self.rows[:, slot].copy_(host, non_blocking=True)

    def _place(self, effects: Sequence[Effect | None]) -> list[int]:
        """A slot for each request of this step; fills rows that are not on the device yet."""
        needed = {effect.key: effect for effect in effects if effect is not None}
        missing = []
        for key in needed:
            if key in self._slot_of:
                self._slot_of.move_to_end(key)
            else:
                missing.append(key)
        for key in missing:
            # Everything this step needs was just moved to the end, so the front is not needed.
            slot = self._free.pop() if self._free else self._slot_of.popitem(last=False)[1]
            self._slot_of[key] = slot
            self.fill(slot, self._layer_rows(needed[key]))
        return [0 if effect is None else self._slot_of[effect.key] for effect in effects]

    def _layer_rows(self, effect: Effect) -> torch.Tensor:
        """This rank's part of ``effect`` as float32 [L, H*D]."""
        shape = self.shape
        rows = np.zeros((len(shape.layers), shape.num_heads, shape.head_dim), dtype=np.float32)
        for layer, head, offset in zip(
            effect.layers.tolist(), effect.heads.tolist(), effect.offsets, strict=True
        ):
            index, local = self._row_of_layer.get(layer), head - shape.first_head
            if index is not None and 0 <= local < shape.num_heads:
                rows[index, local] = offset
        return torch.from_numpy(rows).flatten(1)

    def _to_device(self, values: np.ndarray) -> torch.Tensor:
        host = torch.from_numpy(values)
        if self.token_slots.is_cuda:
            # Fresh pinned memory each time: an earlier step's copy may still be in flight.
            return host.pin_memory().to(self.token_slots.device, non_blocking=True)
        return host

    def _clear(self, start: int) -> None:
        """Neutral slot from token ``start`` on, as far as an earlier step wrote."""
        if self._dirty_tokens > start:
            self.token_slots[start : self._dirty_tokens].zero_()
        self._dirty_tokens = start
