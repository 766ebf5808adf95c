"""One question by the OpenAI client, whole or streamed, and its answer token by token."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from tests.soak.tally import Lost, Wrong
from vllm_palign.selection import HEADER

ENDPOINTS = ("chat", "completions", "responses")


@dataclass(frozen=True)
class Prompt:
    """What is sent (``messages`` of chat, ``input`` of responses, ``prompt`` of completions) and the
    token ids that the model must see."""

    endpoint: str
    sent: Any
    ids: list[int]


@dataclass(frozen=True)
class Question:
    prompt: Prompt
    tokens: int
    stream: bool = False
    count: int = 1
    """Answers wanted (``n``)."""
    leave_after: int | None = None
    """Close the connection after so many chunks."""


@dataclass(frozen=True)
class Piece:
    """What is shown at once: an answer, or a chunk of a stream."""

    tokens: list[tuple[int, float]]
    """(token id, log-probability) each."""
    text: str


@dataclass
class Answer:
    header: str | None
    choices: dict[int, list[Piece]] = field(default_factory=dict)
    generated: int | None = None
    """Tokens that the server counted, where it says so and may leave some out."""
    left: bool = False

    def add(self, choice: int, tokens: Iterable[tuple[str, float]], text: str) -> None:
        # The server runs with --return-tokens-as-token-ids, and lists no token without a number.
        pairs = [(int(token.removeprefix("token_id:")), float(number)) for token, number in tokens]
        self.choices.setdefault(choice, []).append(Piece(pairs, text))


def prompts(tokenizer: Path) -> list[Prompt]:
    """A few, which begin alike over whole KV blocks: blocks that are shared when they must not be
    would be seen."""
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(tokenizer)
    rng = random.Random(0)

    def template(messages: list[dict[str, str]]) -> list[int]:
        text = words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(words(text, add_special_tokens=False)["input_ids"])

    system = "You are a person who answers in a few words, as the mood takes you. " * 3
    found = []
    for text in ("How was your day?", "A friend invites you to a party.", "Hello " * 30):
        asked = [{"role": "user", "content": text}]
        found.append(Prompt("responses", text, template(asked)))
        for messages in (asked, [{"role": "system", "content": system}, *asked]):
            found.append(Prompt("chat", messages, template(messages)))
    beginning = [rng.randrange(100, 40000) for _ in range(70)]
    for length in (1, 3, 20, 33, 64, 65, 70):
        ids = beginning[:length] + [rng.randrange(100, 40000) for _ in range(4)]
        found.append(Prompt("completions", ids, ids))
    return found


async def ask(client: openai.AsyncOpenAI, question: Question, fields: dict[str, Any]) -> Answer:
    """Raises openai.APIStatusError for a refusal, Lost when the answer breaks off."""
    extra: dict[str, Any] = {"ignore_eos": True, "skip_special_tokens": False, **fields}
    # Greedy sampling takes one answer only; the likeliest token alone is the same.
    greedy = {"temperature": 0} if question.count == 1 else {"temperature": 1, "n": question.count}
    if question.count > 1:
        extra["top_k"] = 1
    create, body = _call(client, question)
    model = extra.pop("model", "base")
    raw = await create(model=model, stream=question.stream, extra_body=extra, **body, **greedy)
    answer = Answer(raw.headers.get(HEADER))
    parsed = raw.parse()
    if not question.stream:
        _whole(answer, question.prompt.endpoint, parsed)
    elif not await _streamed(answer, question, parsed):
        raise Lost("the stream ended early")
    return answer


def _call(
    client: openai.AsyncOpenAI, question: Question
) -> tuple[Callable[..., Awaitable[Any]], dict[str, Any]]:
    sent, tokens = question.prompt.sent, question.tokens
    match question.prompt.endpoint:
        case "chat":
            create: Any = client.chat.completions.with_raw_response.create
            return create, {"messages": sent, "max_tokens": tokens, "logprobs": True}
        case "completions":
            create = client.completions.with_raw_response.create
            return create, {"prompt": sent, "max_tokens": tokens, "logprobs": 0}
        case _:
            create = client.responses.with_raw_response.create
            include = ["message.output_text.logprobs"]
            return create, {"input": sent, "max_output_tokens": tokens, "include": include}


def _whole(answer: Answer, endpoint: str, parsed: Any) -> None:
    if endpoint == "responses":
        answer.generated = parsed.usage.output_tokens
        answer.choices[0] = []
        # No item, or one without content, where no token has text.
        for part in (part for item in parsed.output for part in item.content):
            _add_part(answer, part, part.text)
        return
    for choice in parsed.choices:
        _add_choice(answer, endpoint, choice)


def _add_part(answer: Answer, part: Any, text: str) -> None:
    """A part of a response, or a delta of one."""
    answer.add(0, [(entry.token, entry.logprob) for entry in part.logprobs or ()], text)


def _add_choice(answer: Answer, endpoint: str, choice: Any) -> None:
    """A choice, or a chunk of one. The first chunk of a chat says who speaks, and has no tokens."""
    shown, tokens = choice.logprobs, []
    if endpoint == "chat":
        said = choice.delta if hasattr(choice, "delta") else choice.message
        text = said.content or ""
        if shown is not None:
            tokens = [(entry.token, entry.logprob) for entry in shown.content]
    else:
        text = choice.text
        if shown is not None:
            tokens = list(zip(shown.tokens, shown.token_logprobs, strict=True))
    answer.add(choice.index, tokens, text)


async def _streamed(answer: Answer, question: Question, stream: Any) -> bool:
    """Whether it went on to the end, or to where the client leaves."""
    chunks, finished = 0, 0
    async for chunk in _closing(stream):
        chunks += 1
        if question.prompt.endpoint == "responses":
            finished += _add_event(answer, chunk)
        else:
            for choice in chunk.choices:
                _add_choice(answer, question.prompt.endpoint, choice)
                finished += choice.finish_reason is not None
        if chunks == question.leave_after:
            answer.left = True
            return True
    return finished == question.count


def _add_event(answer: Answer, event: Any) -> bool:
    """Whether it is the last one. Raises Wrong if that says something else than those before it."""
    if event.type == "response.output_text.delta":
        _add_part(answer, event, event.delta)
    if event.type != "response.completed":
        return False
    whole = Answer(answer.header)
    _whole(whole, "responses", event.response)
    answer.generated = whole.generated
    deltas = answer.choices.setdefault(0, [])
    if joined(deltas) != joined(whole.choices[0]):
        raise Wrong(f"the last event of a response has {whole.choices[0]} after {deltas}")
    return True


def joined(pieces: Iterable[Piece]) -> Piece:
    pieces = list(pieces)
    tokens = [token for piece in pieces for token in piece.tokens]
    return Piece(tokens, "".join(piece.text for piece in pieces))


async def _closing(stream: Any) -> AsyncIterator[Any]:
    try:
        async for chunk in stream:
            yield chunk
    finally:
        await stream.close()
