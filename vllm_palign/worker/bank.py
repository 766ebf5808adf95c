"""Offsets of running requests on the device, and which token uses which of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vllm_palign.effect import Effect
from vllm_palign.worker.places import HeadPlaces, SteeredHeads
from vllm_palign.worker.rows import RowTable

_STRETCH = 128
"""Seats that are compared at once."""


@dataclass(frozen=True)
class BankShape:
    """``layers`` are the armed decoder layers of this rank in order; ``num_heads`` and ``first_head``
    the query heads of this tensor-parallel rank; ``slots`` rows besides the neutral one, as many as
    requests run at once."""

    layers: tuple[int, ...]
    num_heads: int
    first_head: int
    head_dim: int
    slots: int
    tokens: int


class OffsetBank:
    """Rows [L, S+1, H*D] in the model's dtype, and a slot for each token of the step.

    A token has its request's slot from the request's first steered token on, by its index in the sequence, and
    slot 0 before.

    A slot is the index of a row: one for each distinct effect among the requests that have a *seat*,
    which is the runner's own index of a running request. Row 0 stays zeros, so padding, dummy runs and
    plain requests need no branch. There are as many rows as seats: a full table cannot happen, whatever
    waits or is preempted. What a row held is still on the host, with the request.

    Slots and first tokens by seat are kept on the device and written where they change, so that a step costs
    the same few calls however many requests there are: no host synchronisation, no shape that depends on
    data, nothing for each layer, and no difference between a prompt's tokens and an answer's.
    """

    def __init__(
        self,
        shape: BankShape,
        dtype: torch.dtype,
        device: torch.device,
        *,
        pin_memory: bool = False,
    ) -> None:
        """``pin_memory``: whether what goes to ``device`` goes through pinned memory."""
        self.shape = shape
        width = shape.num_heads * shape.head_dim
        self.rows = torch.zeros(
            len(shape.layers), shape.slots + 1, width, dtype=dtype, device=device
        )
        self.token_slots = torch.zeros(shape.tokens, dtype=torch.int32, device=device)
        self._pin_memory = pin_memory
        self._head_rows = self.rows.view(-1, shape.head_dim)
        self._places = HeadPlaces(
            shape.layers,
            shape.first_head,
            shape.num_heads,
            (shape.slots + 1) * shape.num_heads,
            self._to_device,
        )
        self._filled: list[SteeredHeads | None] = [None] * (shape.slots + 1)
        """For each slot the heads that are not zeros."""
        self._tokens = torch.arange(shape.tokens, dtype=torch.int32, device=device)
        self._table = RowTable(shape.slots)
        self._effects: dict[str, tuple[Effect, int]] = {}
        """Of each steered request its effect and the index of its first steered token."""
        self._seated: list[str | None] = []
        """Requests in the order of the runner's last batch, for runners whose seats are its places."""
        self._seat_of: dict[str, int] = {}
        self._key_at: list[str | None] = [None] * shape.slots
        self._host_seats = torch.zeros(2, shape.slots, dtype=torch.int32)
        """[2, S]: the slot of each seat, and the index of its first steered token."""
        self._slots, self._firsts = self._host_seats.numpy()
        self._device_seats = torch.zeros_like(self._host_seats, device=device)
        self._written = True
        """Whether the device has the seats as the host has them."""
        self._dirty_tokens = 0

    @property
    def num_requests(self) -> int:
        """Steered requests the bank remembers, running or waiting to be resumed."""
        return len(self._effects)

    @property
    def num_resident(self) -> int:
        """Rows in use or kept for reuse."""
        return self._table.num_resident

    def usage(self) -> dict[str, int]:
        """Slots in ``total``, ``in_use`` by distinct effects of the requests it remembers, and
        ``resident``: filled, some of them kept for reuse. For metrics."""
        keys = {effect.key for effect, _ in self._effects.values()}
        return {"total": self.shape.slots, "in_use": len(keys), "resident": self.num_resident}

    def admit(self, request_id: str, effect: Effect, first: int = 0) -> None:
        """A request has arrived at this worker that is steered from the token ``first`` of its sequence on. One
        whose id was here before is forgotten first."""
        self._effects[request_id] = effect, first

    def forget(self, request_id: str) -> None:
        """The request is over (finished, aborted, or preempted and coming back as a new one), and its
        seat is free."""
        self._effects.pop(request_id, None)
        seat = self._seat_of.pop(request_id, None)
        if seat is not None:
            self._vacate(seat)
            if seat < len(self._seated):
                self._seated[seat] = None

    def seat(self, request_id: str, seat: int) -> None:
        """The runner has given an admitted request the index ``seat``, for as long as it runs."""
        effect, first = self._effects[request_id]
        for _, slot in self._table.hold([effect.key]):
            self._fill(slot, effect)
        self._seat_of[request_id] = seat
        self._take(seat, effect, first)

    def step(
        self,
        request_ids: Sequence[str],
        query_start_loc: torch.Tensor,
        num_tokens: int,
        positions: torch.Tensor,
        seats: torch.Tensor | None = None,
    ) -> None:
        """Point each token of the coming forward pass at its request's row.

        ``request_ids`` in batch order (R); ``query_start_loc`` int32 [>= R+1] on the device, where
        token t belongs to request r if query_start_loc[r] <= t < query_start_loc[r+1]; ``positions`` integer
        [>= T] on the device, each token's index in its sequence, never a rotary position; ``seats`` integer
        [R] on the device, of runners that keep a request's index. Without, a request's seat is its place
        in the batch, and this step's batch is compared with the last one's.
        """
        if not self._effects and not self._dirty_tokens:
            return  # nobody is steered and every token is neutral already
        if seats is None:
            self._reseat(request_ids)
        if not self._table.num_held:
            self._clear(0)
            return
        self._write()
        count, target = len(request_ids), self.token_slots[:num_tokens]
        if num_tokens == count and seats is None:
            slots, firsts = self._device_seats[:, :count]
        else:
            owner = seats
            if num_tokens != count:
                # The last boundary is left out: whatever comes after it is the last request's.
                owner = torch.searchsorted(
                    query_start_loc[1:count], self._tokens[:num_tokens], right=True
                )
                if seats is not None:
                    owner = seats.index_select(0, owner)
            assert owner is not None
            slots, firsts = self._device_seats.index_select(1, owner)
        torch.mul(slots, positions[:num_tokens] >= firsts, out=target)
        self._clear(num_tokens)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """Row 1 and all slots are the caller's. Afterwards they are as they were, whoever uses them."""
        row, token_slots = self.rows[:, 1].clone(), self.token_slots.clone()
        try:
            yield
        finally:
            self.rows[:, 1].copy_(row)
            self.token_slots.copy_(token_slots)

    def _reseat(self, request_ids: Sequence[str]) -> None:
        """Seats as in this batch."""
        changed = _changed(request_ids, self._seated)
        if not changed:
            return
        for seat in changed:
            request_id = self._seated[seat] if seat < len(self._seated) else None
            if request_id is not None:
                del self._seat_of[request_id]
                self._vacate(seat)
        self._seated = list(request_ids)
        count = len(request_ids)
        self._occupy([(seat, request_ids[seat]) for seat in changed if seat < count])

    def _vacate(self, seat: int) -> None:
        key, self._key_at[seat] = self._key_at[seat], None
        if key is not None:
            self._table.release(key)
            self._slots[seat] = 0
            self._written = False

    def _occupy(self, requests: Sequence[tuple[int, str]]) -> None:
        """Seat requests, (seat, id), on free seats; fill the rows that are not on the device yet."""
        steered = []
        for seat, request_id in requests:
            self._seat_of[request_id] = seat
            if request_id in self._effects:
                steered.append((seat, *self._effects[request_id]))
        effects = {effect.key: effect for _, effect, _ in steered}
        for key, slot in self._table.hold([effect.key for _, effect, _ in steered]):
            self._fill(slot, effects[key])
        for seat, effect, first in steered:
            self._take(seat, effect, first)

    def _take(self, seat: int, effect: Effect, first: int) -> None:
        self._key_at[seat] = effect.key
        self._slots[seat] = self._table.row(effect.key)
        self._firsts[seat] = first
        self._written = False

    def _fill(self, slot: int, effect: Effect) -> None:
        """Overwrite one row on all layers with this rank's part of ``effect``. Only its steered heads go
        to the device, and only those of the row's last effect are cleared there."""
        heads, before = self._places.of(effect), self._filled[slot]
        start = slot * self.shape.num_heads
        if before is not None and before is not heads:
            self._head_rows.index_fill_(0, before.places + start, 0)
        values = torch.from_numpy(heads.offsets(effect)).to(self.rows.dtype)
        self._head_rows.index_copy_(0, heads.places + start, self._to_device(values))
        self._filled[slot] = heads

    def _write(self) -> None:
        """The seats, if they have changed: all of them, one small copy."""
        if not self._written:
            self._device_seats.copy_(self._staged(self._host_seats), non_blocking=self._pin_memory)
            self._written = True

    def _to_device(self, host: torch.Tensor) -> torch.Tensor:
        return self._staged(host).to(self.rows.device, non_blocking=self._pin_memory)

    def _staged(self, host: torch.Tensor) -> torch.Tensor:
        """``host`` where a copy need not wait for it. Fresh memory each time: an earlier step's copy may
        still be in flight."""
        return host.pin_memory() if self._pin_memory else host

    def _clear(self, start: int) -> None:
        """Neutral slot from token ``start`` on, as far as an earlier step wrote."""
        if self._dirty_tokens > start:
            self.token_slots[start : self._dirty_tokens].zero_()
        self._dirty_tokens = start


def _changed(now: Sequence[str], before: Sequence[str | None]) -> list[int]:
    """Places at which two batches differ. The same objects stand at most of them."""
    both, changed = min(len(now), len(before)), []
    for start in range(0, both, _STRETCH):
        new, old = now[start : start + _STRETCH], before[start : start + _STRETCH]
        if new != old:
            pairs = zip(new, old, range(start, both))  # noqa: B905
            changed += [place for request_id, last, place in pairs if request_id != last]
    return changed + list(range(both, max(len(now), len(before))))
