"""What the model says: the likeliest token at every step, many answers at once, each person's own steering."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from palign_fit.model.rows import Dose, Rows, Tokens
from palign_fit.progress import Tick

if TYPE_CHECKING:
    from palign_fit.model.model import OpenedModel

MAX_ROWS = 64
MAX_CELLS = 2**16
"""Rows, and rows times columns, of one batch: what keys and values take is bounded by it."""


@dataclass(frozen=True, eq=False)
class Line:
    """One prompt (at least two tokens); steered from its last token on, or ``whole``."""

    prompt: tuple[int, ...]
    dose: Dose = (None, 0.0)
    whole: bool = False


class Speaker:
    """Answers lines on one model, and remembers the prompts it read last: everybody is asked the same questions."""

    def __init__(self, model: OpenedModel) -> None:
        self.model = model
        self._heads: tuple[tuple[int, ...], ...] = ()
        self._read: Rows | None = None

    def answers(self, lines: Sequence[Line], max_tokens: int, tick: Tick) -> list[list[int]]:
        """The tokens of each line's answer, without what ends it."""
        answers: list[list[int]] = [[]] * len(lines)
        for places in _batches(lines, [max_tokens] * len(lines), [0] * len(lines)):
            batch = [lines[place] for place in places]
            rows, logits = self._asked(batch)
            for place, said in zip(places, greedy(rows, logits, max_tokens), strict=True):
                answers[place] = said
            tick(len(places))
        return answers

    def _asked(self, batch: Sequence[Line]) -> tuple[Rows, Any]:
        """The prompts read, and the logits of the first tokens of their answers."""
        doses = [line.dose for line in batch]
        if batch[0].whole:
            rows = Rows(self.model, len(batch))
            rows.steer(doses)
            return rows, rows.put([line.prompt for line in batch])
        heads = [line.prompt[:-1] for line in batch]
        distinct = tuple(dict.fromkeys(heads))
        if self._read is None or self._heads != distinct:
            self._read = None
            self._heads, self._read = distinct, Rows.of(self.model, distinct)
        rows = self._read.select([distinct.index(head) for head in heads])
        rows.steer(doses)
        return rows, rows.put([line.prompt[-1:] for line in batch])


def greedy(rows: Rows, logits: Any, max_tokens: int, *, keep: bool = False) -> list[list[int]]:
    """Go on from ``logits`` [B, 1, V] until every row has ended. Rows that have ended are dropped from the batch;
    with ``keep`` they stay, so that ``rows`` has everything but the last token of an answer that was cut off."""
    answers: list[list[int]] = [[] for _ in range(len(rows))]
    ends = ending_tokens(rows.model)
    active = list(range(len(rows)))
    """The row's place in ``answers``, of every row of the batch."""
    going = [True] * len(rows)
    for _ in range(max_tokens):
        chosen = logits[:, -1].argmax(-1).tolist()
        for row, token in enumerate(chosen):
            going[row] = going[row] and token not in ends
            if going[row]:
                answers[active[row]].append(token)
        left = [row for row, goes in enumerate(going) if goes]
        if not left or len(answers[active[left[0]]]) == max_tokens:
            break
        if not keep and len(left) <= 0.75 * len(going):
            rows = rows.select(left)
            active = [active[row] for row in left]
            chosen = [chosen[row] for row in left]
            going = [True] * len(left)
        logits = rows.put(
            [[token] if goes else [] for token, goes in zip(chosen, going, strict=True)]
        )
    return answers


def conversations(
    model: OpenedModel,
    firsts: Sequence[Line],
    later: Sequence[Sequence[Tokens]],
    max_tokens: int,
    tick: Tick,
) -> list[list[list[int]]]:
    """The tokens of every answer of conversations that begin with ``firsts``; ``later``: what stands between an answer
    and the next. Whoever is steered is steered from the first line's last token on, later prompts too."""
    answers: list[list[list[int]]] = [[]] * len(firsts)
    rooms = [sum(map(len, own)) + max_tokens * (len(own) + 1) for own in later]
    for places in _batches(firsts, rooms, [len(own) for own in later]):
        talked = _conversed(
            model,
            [firsts[one] for one in places],
            [later[one] for one in places],
            max_tokens,
            tick,
        )
        for place, said in zip(places, talked, strict=True):
            answers[place] = said
    return answers


def _conversed(
    model: OpenedModel,
    firsts: Sequence[Line],
    later: Sequence[Sequence[Tokens]],
    max_tokens: int,
    tick: Tick,
) -> list[list[list[int]]]:
    """One batch, all of as many turns."""
    if firsts[0].whole:
        rows = Rows(model, len(firsts))
        rows.steer([line.dose for line in firsts])
        logits = rows.put([line.prompt for line in firsts])
    else:
        rows = Rows.of(model, [line.prompt[:-1] for line in firsts])
        rows.steer([line.dose for line in firsts])
        logits = rows.put([line.prompt[-1:] for line in firsts])
    answers: list[list[list[int]]] = [[] for _ in firsts]
    for turn in range(len(later[0]) + 1):
        said = greedy(rows, logits, max_tokens, keep=True)
        for own, answer in zip(answers, said, strict=True):
            own.append(answer)
        tick(len(firsts))
        if turn < len(later[0]):
            logits = rows.put(
                [
                    [*(answer[-1:] if len(answer) == max_tokens else ()), *own[turn]]
                    for answer, own in zip(said, later, strict=True)
                ]
            )
    return answers


def ending_tokens(model: OpenedModel) -> set[int]:
    """Tokens that end an answer."""
    named = [
        getattr(getattr(model.model, "generation_config", None), "eos_token_id", None),
        getattr(model.tokenizer, "eos_token_id", None),
    ]
    ends: set[int] = set()
    for one in named:
        ends |= set(one) if isinstance(one, list) else set() if one is None else {int(one)}
    return ends


def _batches(
    lines: Sequence[Line], rooms: Sequence[int], turns: Sequence[int]
) -> Iterator[list[int]]:
    """Places of lines that are asked together: of one kind and as many later ``turns``, equal prompts beside one
    another. ``rooms``: tokens that each line needs after its prompt."""
    kinds = [(line.whole, later) for line, later in zip(lines, turns, strict=True)]
    order = sorted(
        range(len(lines)),
        key=lambda place: (kinds[place], len(lines[place].prompt), lines[place].prompt),
    )
    batch: list[int] = []
    widest = 0
    for place in order:
        width = len(lines[place].prompt) + rooms[place]
        cells = (len(batch) + 1) * max(widest, width)
        other = bool(batch) and kinds[batch[0]] != kinds[place]
        if batch and (other or len(batch) == MAX_ROWS or cells > MAX_CELLS):
            yield batch
            batch, widest = [], 0
        batch.append(place)
        widest = max(widest, width)
    if batch:
        yield batch
