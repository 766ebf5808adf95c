"""Where the answers of a conversation begin: the first token that scope ``answers`` steers.

A request without an assistant's turn is steered from its last prompt token on, from which the first token of the
answer is read. A conversation goes on from the token where its first turn was steered from, or no later turn
would find its KV again. That turn's prompt is the messages before the first answer, rendered by the same template
with the generation prompt; it counts if the conversation's own prompt begins with exactly its tokens. A template
that renders the past in another way (thinking taken out, tools moved) has no such token, and its conversations are
steered from their last prompt token on: more is computed anew, nothing is wrong.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

_KEY = "palign_first_turn"
"""In vLLM's prompt, between the renderer and admission: ``_Turn``, or a function that makes it."""

_MOST_KNOWN = 4096
"""First turns remembered; some 200 bytes each."""


@dataclasses.dataclass(frozen=True)
class _Turn:
    """The prompt of a first turn: how many tokens, and a digest of them."""

    length: int
    digest: bytes

    @classmethod
    def of(cls, prompt: Any) -> _Turn | None:
        tokens = _tokens(prompt)
        return cls(len(tokens), _digest(tokens)) if tokens else None

    def begins(self, tokens: Sequence[int]) -> bool:
        return self.length <= len(tokens) and _digest(tokens[: self.length]) == self.digest


class _Known:
    """First turns by what they were rendered from, the least recently used forgotten first."""

    def __init__(self) -> None:
        self._turns: OrderedDict[bytes, _Turn | None] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> tuple[bool, _Turn | None]:
        with self._lock:
            if key not in self._turns:
                return False, None
            self._turns.move_to_end(key)
            return True, self._turns[key]

    def put(self, key: bytes, turn: _Turn | None) -> None:
        with self._lock:
            self._turns[key] = turn
            while len(self._turns) > _MOST_KNOWN:
                self._turns.popitem(last=False)


_known: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()
"""By vLLM's renderer: another model's template makes other tokens of the same messages."""


def first_answer(request: Any, prompt: Any) -> int:
    """Index of the first token of ``request`` (EngineCoreRequest, made of ``prompt``) that is steered."""
    tokens = request.prompt_token_ids
    count = len(request.prompt_embeds) if tokens is None else len(tokens)
    turn = prompt.pop(_KEY, None) if isinstance(prompt, dict) else None
    if callable(turn):
        turn = turn()
    if turn is not None and tokens is not None and turn.begins(tokens):
        count = turn.length
    return max(count - 1, 0)


async def note_first_turn(
    renderer: Any,
    render: Callable[..., Awaitable[Any]],
    conversation: Any,
    chat_params: Any,
    tok_params: Any,
    prompt: Any,
) -> None:
    """Write into ``prompt``, what vLLM rendered of ``conversation``, how its first turn is rendered.

    ``render(conversations, chat_params, tok_params)`` is ``renderer``'s, vLLM's own, which works beside the event loop.
    """
    asked = _asked(conversation, chat_params, tok_params)
    if asked is None or not isinstance(prompt, dict):
        return
    key, opening, chat_params = asked
    turns = _known.setdefault(renderer, _Known())
    known, turn = turns.get(key)
    if not known:
        try:
            _, (first,) = await render([opening], chat_params, tok_params)
            turn = _Turn.of(first)
        except (TimeoutError, RuntimeError):
            return  # the machine was busy, or vLLM was changing threads; the next turn asks again
        except Exception:
            # A template may refuse to begin without a user's message: then there was no such turn.
            turn = None
        turns.put(key, turn)
    prompt[_KEY] = turn


def note_first_turn_later(
    renderer: Any,
    render: Callable[..., Any],
    conversation: Any,
    chat_params: Any,
    tok_params: Any,
    prompt: Any,
) -> None:
    """The same where nobody waits: rendered when the prompt turns out to be steered."""
    asked = _asked(conversation, chat_params, tok_params)
    if asked is None or not isinstance(prompt, dict):
        return
    key, opening, chat_params = asked
    turns = _known.setdefault(renderer, _Known())

    def turn() -> _Turn | None:
        known, found = turns.get(key)
        if not known:
            try:
                _, (first,) = render([opening], chat_params, tok_params)
                found = _Turn.of(first)
            except (TimeoutError, RuntimeError):
                return None
            except Exception:
                found = None
            turns.put(key, found)
        return found

    prompt[_KEY] = turn


def _asked(
    conversation: Any, chat_params: Any, tok_params: Any
) -> tuple[bytes, list[Any], Any] | None:
    """Key, messages and parameters of the first turn's prompt, or None for a conversation without an answer
    yet, or whose beginning is more than text: an image would have to be fetched again."""
    opening = _opening(conversation)
    if opening is None:
        return None
    params = dataclasses.replace(
        chat_params,
        chat_template_kwargs={
            **chat_params.chat_template_kwargs,
            "add_generation_prompt": True,
            "continue_final_message": False,
        },
    )
    try:
        content = json.dumps(opening)
    except (TypeError, ValueError):
        return None
    text = f"{content}\0{params!r}\0{tok_params!r}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), opening, params


def _opening(conversation: Any) -> list[Any] | None:
    opening: list[Any] = []
    for message in conversation:
        if not isinstance(message, dict):
            return None
        if message.get("role") == "assistant":
            return opening
        content = message.get("content")
        if isinstance(content, list) and not all(map(_is_text, content)):
            return None
        opening.append(message)
    return None


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (
        isinstance(part, dict) and part.get("type") in ("text", "input_text")
    )


def _tokens(prompt: Any) -> list[int] | None:
    return prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None


def _digest(tokens: Sequence[int]) -> bytes:
    return hashlib.sha256(array("q", tokens).tobytes()).digest()
