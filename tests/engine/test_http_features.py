"""Features that a client sees, on a real ``vllm serve`` with two data parallel replicas, against the
reference method."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from tests import grammar
from tests.conftest import Server, start_server, stop_server
from tests.matrix import Measured
from tests.oracle import logprobs
from vllm_palign import Persona

BOUND = 1e-4
NAMES = ("p0", "p1", "p2", "p3")
MESSAGES: Any = [{"role": "user", "content": "How are you?"}]
MOODS = ["calm", "cheerful", "curious", "gloomy", "proud", "shy", "tired", "wild"]
SCHEMA = {
    "type": "object",
    "properties": {"mood": {"type": "string", "enum": MOODS}},
    "required": ["mood"],
    "additionalProperties": False,
}

Personas = dict[str, Persona]


@pytest.fixture(scope="module")
def pair(
    tiny_model: Path,
    tiny_personas: tuple[Path, Personas],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    running = start_server(
        tiny_model, tmp_path_factory.mktemp("pair") / "server.log",
        "--plugin", "palign", "--palign-personas", str(tiny_personas[0]),
        "--data-parallel-size", "2", "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "512", "--max-num-seqs", "8",
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
        "--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}',
    )  # fmt: skip
    yield running
    stop_server(running)


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def complete(server: Server, persona: str | None, rank: int | None = None, **options: Any) -> Any:
    """The first choice of a greedy completion, with its tokens."""
    body: dict[str, Any] = {
        "model": "base", "prompt": [5, 600, 7000, 42, 9], "max_tokens": 12, "temperature": 0,
        "logprobs": 0, "return_token_ids": True, **({"persona": persona} if persona else {}), **options,
    }  # fmt: skip
    headers = {} if rank is None else {"X-data-parallel-rank": str(rank)}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60)
    assert reply.status_code == 200, reply.text
    return {**reply.json()["choices"][0], "prompt": body["prompt"]}


def errors(
    answer: Any, reference: Any, personas: Personas, persona: str | None
) -> dict[str, float]:
    """Of the answer's tokens; ``effect`` if it is steered."""
    prompt, tokens = answer["prompt"], answer["token_ids"]
    got = np.array(answer["logprobs"]["token_logprobs"])

    def worst(parts: list[tuple[Persona, float]]) -> float:
        wanted = logprobs(reference, [*prompt, *tokens], parts)[len(prompt) - 1 :]
        return float(np.abs(got - wanted).max())

    if persona is None:
        return {"plain": worst([])}
    return {"steered": worst([(personas[persona], 1.0)]), "effect": worst([])}


def metric(server: Server, name: str, *labels: str) -> float:
    """Sum of the samples of ``name`` whose labels contain all of ``labels``."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    found = [line for line in lines if line.startswith(name + "{")]
    return sum(float(line.split()[-1]) for line in found if all(text in line for text in labels))


@pytest.mark.shows("features", "data parallel 2", note="each replica asked by name, over HTTP")
@pytest.mark.parametrize("persona", [*NAMES[:2], None])
def test_each_data_parallel_replica_steers(
    persona: str | None,
    pair: Server,
    reference: Any,
    tiny_personas: tuple[Path, Personas],
    measured: Measured,
) -> None:
    before = [metric(pair, "vllm:request_success_total", f'engine="{rank}"') for rank in (0, 1)]
    answers = [complete(pair, persona, rank) for rank in (0, 1)]
    after = [metric(pair, "vllm:request_success_total", f'engine="{rank}"') for rank in (0, 1)]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1.0, 1.0]
    assert answers[0]["token_ids"] == answers[1]["token_ids"]
    found = errors(answers[1], reference, tiny_personas[1], persona)
    measured(found)
    assert found.pop("effect", 1.0) > 1000 * BOUND
    assert max(found.values()) < BOUND


@pytest.mark.shows("features", "stop strings", note="over HTTP")
def test_a_stop_string_ends_a_steered_answer_where_it_ends_a_plain_one(
    pair: Server, reference: Any, tiny_personas: tuple[Path, Personas], measured: Measured
) -> None:
    worst: dict[str, float] = {}
    for persona in (None, *NAMES):
        whole = complete(pair, persona)["text"]
        stop = whole[len(whole) // 2 :][:4]
        answer = complete(pair, persona, stop=[stop])
        assert answer["text"] == whole[: whole.index(stop)]
        assert answer["finish_reason"] == "stop"
        worst |= errors(answer, reference, tiny_personas[1], persona)
    measured(worst)
    assert worst.pop("effect") > 1000 * BOUND
    assert max(worst.values()) < BOUND


@pytest.fixture(scope="module")
def chosen(
    pair: Server, reference: Any, tokenizer: Any, tiny_personas: tuple[Path, Personas]
) -> Callable[..., dict[str | None, str]]:
    """``chosen(**body)``: what the reference method says under ``SCHEMA`` to a chat, greedily, for each
    persona and for none."""
    schema = grammar.compile_schema(json.dumps(SCHEMA), tokenizer, reference.config.vocab_size)

    def say(**body: Any) -> dict[str | None, str]:
        fields = {"model": "base", "messages": MESSAGES, **body}
        prompt = httpx.post(f"{pair.url}/tokenize", json=fields).json()["tokens"]
        said = {}
        for name in (None, *NAMES):
            parts = [(tiny_personas[1][name], 1.0)] if name else []
            said[name] = tokenizer.decode(grammar.greedy(reference, schema, prompt, parts))
        assert len(set(said.values())) > 1, "personas must differ, or nothing is shown"
        return said

    return say


def chat(server: Server, persona: str | None, **options: Any) -> Any:
    """The message of a greedy answer, through OpenAI's own client."""
    api = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answer = api.chat.completions.create(
        model="base", messages=MESSAGES, max_tokens=24, temperature=0,
        extra_body={"persona": persona} if persona else None, **options,
    )  # fmt: skip
    return answer.choices[0].message


@pytest.mark.shows(
    "features",
    "structured output",
    note="JSON schema; every token the reference's choice of those allowed",
)
def test_structured_output_is_the_steered_choice_among_what_the_schema_allows(
    pair: Server, chosen: Callable[..., dict[str | None, str]]
) -> None:
    wanted = chosen()
    schema = {"type": "json_schema", "json_schema": {"name": "mood", "schema": SCHEMA}}
    got = {name: chat(pair, name, response_format=schema).content for name in wanted}
    assert got == wanted


@pytest.mark.shows(
    "features", "tool calls", note="a named tool; arguments as the reference chooses them"
)
def test_a_tool_call_has_the_arguments_that_the_steered_model_chooses(
    pair: Server, chosen: Callable[..., dict[str | None, str]]
) -> None:
    tool: Any = {"type": "function", "function": {"name": "set_mood", "parameters": SCHEMA}}
    wanted = chosen(tools=[tool])
    named: Any = {"type": "function", "function": {"name": "set_mood"}}
    got = {}
    for name in wanted:
        (call,) = chat(pair, name, tools=[tool], tool_choice=named).tool_calls
        assert call.function.name == "set_mood"
        got[name] = call.function.arguments
    assert got == wanted


@pytest.mark.shows(
    "features", "streaming, client disconnects", note="neighbour and successor stay right"
)
def test_a_client_that_leaves_ends_its_request_and_nobody_elses(
    pair: Server, reference: Any, tiny_personas: tuple[Path, Personas], measured: Measured
) -> None:
    aborted = metric(pair, "vllm:request_success_total", 'finished_reason="abort"')
    body = {
        "model": "base", "prompt": [1, 2, 3], "max_tokens": 480, "ignore_eos": True, "stream": True,
        "persona": "p0",
    }  # fmt: skip
    headers = {"X-data-parallel-rank": "0"}
    url = f"{pair.url}/v1/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as reply:
        assert reply.status_code == 200
        next(reply.iter_lines())
        beside = complete(pair, "p1", rank=0)
    deadline = time.monotonic() + 30
    while metric(pair, "vllm:request_success_total", 'finished_reason="abort"') == aborted:
        assert time.monotonic() < deadline, "the server goes on for a client that has left"
        time.sleep(0.1)
    after = complete(pair, "p2", rank=0)
    worst: dict[str, float] = {}
    for answer, persona in ((beside, "p1"), (after, "p2"), (complete(pair, None, rank=0), None)):
        worst |= errors(answer, reference, tiny_personas[1], persona)
    measured(worst)
    assert metric(pair, "vllm:num_requests_running") == 0
    assert worst.pop("effect") > 1000 * BOUND
    assert max(worst.values()) < BOUND
