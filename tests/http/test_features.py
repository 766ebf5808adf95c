"""What clients use of vLLM besides the persona, in mixed batches, against the reference method."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoTokenizer

from tests import oracle
from tests.conftest import Server
from tests.http.grammar import Grammar
from tests.shown import Measured
from vllm_palign import Persona

BOUND = 1e-4
"""Largest |log-probability difference| of an answer's tokens."""
WHO = (None, "p0", "p1", "p2", "p3")
MESSAGES: Any = [{"role": "user", "content": "How are you?"}]
MOODS = ["calm", "cheerful", "curious", "gloomy", "proud", "shy", "tired", "wild"]
PLACES = ["beach", "city", "forest", "home", "library", "market", "mountain", "river"]


def one_of(field: str, words: list[str]) -> dict[str, Any]:
    """The JSON schema of an object that has one of the words in its field."""
    properties = {field: {"type": "string", "enum": words}}
    return {
        "type": "object",
        "properties": properties,
        "required": [field],
        "additionalProperties": False,
    }


@dataclass(frozen=True)
class Answer:
    """A greedy answer, with what the server says of its tokens."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    choice: dict[str, Any]


def complete(server: Server, who: str | None, **options: Any) -> Answer:
    fields = {"prompt": [5, 600, 7000, 42, 9], "max_tokens": 12, "temperature": 0}
    reply = server.post(
        "/v1/completions", persona=who, logprobs=0, return_token_ids=True, **fields | options
    )
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    logprobs = choice["logprobs"]["token_logprobs"]
    return Answer(choice["prompt_token_ids"], choice["token_ids"], logprobs, choice)


def chat(server: Server, who: str | None, **options: Any) -> Answer:
    fields = {"messages": MESSAGES, "max_tokens": 40, "temperature": 0, "logprobs": True}
    reply = server.post(
        "/v1/chat/completions", persona=who, return_token_ids=True, **fields | options
    )
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    logprobs = [token["logprob"] for token in choice["logprobs"]["content"]]
    return Answer(reply.json()["prompt_token_ids"], choice["token_ids"], logprobs, choice)


def at_once(
    ask: Callable[..., Answer], server: Server, options: Sequence[dict[str, Any]] | None = None
) -> list[Answer]:
    """An answer for each of ``WHO``."""
    with ThreadPoolExecutor(len(WHO)) as pool:
        asked = [
            pool.submit(ask, server, who, **more)
            for who, more in zip(WHO, options or [{}] * len(WHO), strict=True)
        ]
        return [future.result() for future in asked]


Judge = Callable[..., None]


@pytest.fixture
def judge(
    reference: Any, tiny_personas: tuple[Path, dict[str, Persona]], measured: Measured
) -> Judge:
    """``judge([("p0", answer), ...])`` holds answers against the reference method, with ``grammar`` among what
    that allows: their tokens, up to ties, and their log-probabilities."""

    def wanted(who: str | None, answer: Answer, mask: torch.Tensor) -> torch.Tensor:
        parts = [(tiny_personas[1][who], 1.0)] if who else []
        text = [*answer.prompt, *answer.tokens]
        start = len(answer.prompt) - 1
        rows = torch.from_numpy(
            oracle.table(reference, text, parts, last=len(answer.tokens), start=start)
        )
        return torch.log_softmax(rows + mask, dim=-1)

    def judge(answers: Sequence[tuple[str | None, Answer]], grammar: Grammar | None = None) -> None:
        errors: dict[str, float] = {}
        effects = []
        for who, answer in answers:
            mask = grammar.mask(answer.tokens) if grammar else torch.tensor(0.0)
            said, tokens = torch.tensor(answer.logprobs), torch.tensor(answer.tokens)[:, None]
            rows = wanted(who, answer, mask)
            own = rows.gather(1, tokens)[:, 0]
            error = float((said - own).abs().max())
            assert float((rows.max(-1).values - own).max()) <= 2 * error, (who, answer)
            errors[who or "plain"] = error
            if who:
                plain = wanted(None, answer, mask).gather(1, tokens)[:, 0]
                effects.append(float((plain - own).abs().max()))
        measured({**errors, "effect": min(effects)})
        assert max(errors.values()) < BOUND
        # What an answer without its persona would be off by.
        assert min(effects) > 1000 * BOUND

    return judge


@pytest.mark.shows("features", "stop strings", note="each answer at a string of its own")
def test_a_stop_string_ends_a_steered_answer_as_it_ends_a_plain_one(
    tiny_server: Server, judge: Judge
) -> None:
    whole = [answer.choice["text"] for answer in at_once(complete, tiny_server)]
    assert len(set(whole)) == len(WHO)
    stops = [text[len(text) // 2 :][:4] for text in whole]
    answers = at_once(complete, tiny_server, [{"stop": [stop]} for stop in stops])
    for text, stop, answer in zip(whole, stops, answers, strict=True):
        assert answer.choice["text"] == text[: text.index(stop)]
        assert answer.choice["finish_reason"] == "stop"
        assert answer.choice["stop_reason"] == stop
    judge(list(zip(WHO, answers, strict=True)))


Compile = Callable[[dict[str, Any]], Grammar]


@pytest.fixture(scope="module")
def grammar(tiny_model: Path, reference: Any) -> Compile:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return lambda schema: Grammar(schema, tokenizer, reference.config.vocab_size)


@pytest.mark.shows(
    "features", "structured output", note="a JSON schema; log-probabilities among what it allows"
)
def test_structured_output_is_what_the_steered_model_says_within_the_schema(
    tiny_server: Server, judge: Judge, grammar: Compile
) -> None:
    schema = one_of("mood", MOODS)
    wanted = {"type": "json_schema", "json_schema": {"name": "mood", "schema": schema}}
    answers = at_once(chat, tiny_server, [{"response_format": wanted}] * len(WHO))
    said = [json.loads(answer.choice["message"]["content"])["mood"] for answer in answers]
    assert set(said) <= set(MOODS)
    assert len(set(said)) > 1, "one answer for all would show nothing"
    judge(list(zip(WHO, answers, strict=True)), grammar(schema))


@pytest.mark.shows(
    "features", "tool calls", note="a named tool; its arguments, among what its schema allows"
)
def test_a_tool_call_has_the_arguments_that_the_steered_model_chooses(
    tiny_server: Server, judge: Judge, grammar: Compile
) -> None:
    schema = one_of("place", PLACES)
    tool = {"type": "function", "function": {"name": "go_to", "parameters": schema}}
    named = {"type": "function", "function": {"name": "go_to"}}
    answers = at_once(chat, tiny_server, [{"tools": [tool], "tool_choice": named}] * len(WHO))
    said = []
    for answer in answers:
        (call,) = answer.choice["message"]["tool_calls"]
        assert call["function"]["name"] == "go_to"
        said.append(json.loads(call["function"]["arguments"])["place"])
    assert set(said) <= set(PLACES)
    assert len(set(said)) > 1, "one answer for all would show nothing"
    judge(list(zip(WHO, answers, strict=True)), grammar(schema))


@pytest.mark.shows(
    "features", "tool calls, required", note="one of two tools, and its arguments, likewise"
)
def test_a_required_tool_call_is_the_one_that_the_steered_model_chooses(
    tiny_server: Server, judge: Judge, grammar: Compile
) -> None:
    schemas = {"go_to": one_of("place", PLACES), "feel": one_of("mood", MOODS)}
    functions = [{"name": name, "parameters": schema} for name, schema in schemas.items()]
    options = {
        "tools": [{"type": "function", "function": function} for function in functions],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 60,
    }
    answers = at_once(chat, tiny_server, [options] * len(WHO))
    said = []
    for answer in answers:
        (call,) = answer.choice["message"]["tool_calls"]
        schema = schemas[call["function"]["name"]]
        (field,) = schema["required"]
        said.append(json.loads(call["function"]["arguments"])[field])
        assert said[-1] in schema["properties"][field]["enum"]
    assert len(set(said)) > 1, "one answer for all would show nothing"
    calls = [
        {
            "type": "object",
            "properties": {"name": {"type": "string", "enum": [name]}, "parameters": schema},
            "required": ["name", "parameters"],
        }
        for name, schema in schemas.items()
    ]
    allowed = {
        "type": "array",
        "minItems": 1,
        "maxItems": 1,
        "items": {"type": "object", "anyOf": calls},
    }
    judge(list(zip(WHO, answers, strict=True)), grammar(allowed))


def metric(server: Server, name: str, **labels: str) -> float:
    """The sum of the samples of ``name`` that have ``labels``."""
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def wait_for(server: Server, value: float, name: str, **labels: str) -> None:
    for _ in range(150):
        if metric(server, name, **labels) == value:
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} {labels} is {metric(server, name, **labels)}, not {value}")


def leave(server: Server, who: str | None) -> None:
    """Close the connection when the answer has begun."""
    body = {
        "model": "base",
        "prompt": [1, 2, 3],
        "persona": who,
        "max_tokens": 250,
        "ignore_eos": True,
    }
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json={**body, "stream": True}
    ) as reply:
        assert reply.status_code == 200
        next(reply.iter_lines())


@pytest.mark.shows(
    "features",
    "streaming, clients that leave",
    note="neighbours, successors and slots of three that left",
)
def test_a_client_that_leaves_ends_its_own_request_and_nobody_elses(
    tiny_server: Server, judge: Judge
) -> None:
    finished = {"name": "vllm:request_success_total", "finished_reason": "length"}
    for _ in range(5):
        before = metric(tiny_server, **finished)
        with ThreadPoolExecutor(4) as pool:
            beside = pool.submit(complete, tiny_server, "p4", max_tokens=200, ignore_eos=True)
            list(pool.map(leave, [tiny_server] * 3, WHO[1:4]))
        wait_for(tiny_server, 0, "vllm:num_requests_running")
        # A busy machine's server may hear that a client left when its answer is over.
        if metric(tiny_server, **finished) == before + 1:
            break
    else:
        raise AssertionError("answers nobody waits for were finished")
    after = at_once(complete, tiny_server)
    judge([("p4", beside.result()), *zip(WHO, after, strict=True)])
    # A worker hears with the next step that requests are over, and a plain one has no slot.
    complete(tiny_server, None)
    wait_for(tiny_server, 0, "palign_slots", state="in_use")
