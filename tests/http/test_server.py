"""A real ``vllm serve`` with the real OpenAI client: choosing and refusing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Server
from vllm_palign import Persona

MESSAGES: Any = [{"role": "user", "content": "It is Friday evening. What do you feel like doing?"}]


def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


class Said(NamedTuple):
    """Two answers may have one text: vLLM shows nothing of tokens that end within a character."""

    text: str
    tokens: tuple[int, ...]


def with_tokens(extra_body: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """``options`` of a call, with what makes vLLM list its tokens: on ``/v1/responses`` the second."""
    fields = {"return_token_ids": True, "enable_response_messages": True}
    return {**options, "extra_body": {**fields, **(extra_body or {})}}


def said_in_chat(choice: Any) -> Said:
    return Said(choice.message.content or "", tuple(choice.token_ids))


def said_in_chunks(chunks: Any) -> Said:
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    tokens = (getattr(choice, "token_ids", None) or () for choice in choices)
    text = "".join(choice.delta.content or "" for choice in choices)
    return Said(text, tuple(chain.from_iterable(tokens)))


def said_in_completion(choice: Any) -> Said:
    return Said(choice.text, tuple(choice.token_ids))


def said_in_response(response: Any) -> Said:
    (message,) = response.output_messages
    assert message["message"] == response.output_text
    return Said(response.output_text, tuple(message["tokens"]))


def chat(server: Server, model: str = "base", **options: Any) -> tuple[Said, str | None]:
    """A greedy answer and the persona header."""
    raw = client(server).chat.completions.with_raw_response.create(
        model=model, messages=MESSAGES, max_tokens=12, temperature=0, **with_tokens(**options)
    )
    return said_in_chat(raw.parse().choices[0]), raw.headers.get("x-palign-persona")


def digest(personas: tuple[Path, dict[str, Persona]], name: str) -> str:
    return personas[1][name].digest[:12]


SmolPersonas = tuple[Path, dict[str, Persona]]


def test_the_three_ways_to_choose_are_one(server: Server, smol_personas: SmolPersonas) -> None:
    plain, no_header = chat(server)
    ways = [
        chat(server, extra_body={"persona": {"id": "p0", "strength": 0.5}}),
        chat(server, metadata={"persona": "p0", "persona_strength": "0.5"}),
        chat(server, extra_body={"persona": {"mix": {"p0": 0.5}}}),
        chat(server, extra_body={"persona": {"id": "p0", "strength": 0.5}}, metadata={"persona": "p0", "persona_strength": "0.5"}),
    ]  # fmt: skip
    assert no_header is None
    assert len({said for said, _ in ways}) == 1
    assert ways[0][0] != plain
    assert ways[0][1] == f"p0@{digest(smol_personas, 'p0')};strength=0.5;scope=answers"
    suffix = chat(server, model="base@p1")
    assert suffix == chat(server, extra_body={"persona": "p1"})
    assert suffix[1] == f"p1@{digest(smol_personas, 'p1')};strength=1.0;scope=answers"


def test_a_blend_lists_its_parts(server: Server, smol_personas: SmolPersonas) -> None:
    _, header = chat(
        server, extra_body={"persona": {"mix": {"p1": 0.3, "p0": 0.7}, "strength": -1}}
    )
    assert (
        header
        == f"p0@{digest(smol_personas, 'p0')}*0.7+p1@{digest(smol_personas, 'p1')}*0.3;strength=-1.0;scope=answers"
    )


def test_strength_zero_answers_as_plain_and_says_so(server: Server) -> None:
    said, header = chat(server, extra_body={"persona": {"id": "p0", "strength": 0}})
    assert said == chat(server)[0]
    assert header is not None
    assert header.endswith(";strength=0.0;scope=answers")


def test_streaming_gives_the_same_text_and_the_header(server: Server) -> None:
    whole, header = chat(server, extra_body={"persona": "p2"})
    raw = client(server).chat.completions.with_raw_response.create(
        model="base", messages=MESSAGES, max_tokens=12, temperature=0, stream=True,
        **with_tokens({"persona": "p2"}),
    )  # fmt: skip
    assert raw.headers.get("x-palign-persona") == header
    assert said_in_chunks(raw.parse()) == whole


def test_completions_and_responses_are_steered_too(server: Server) -> None:
    api = client(server)

    def completion(**options: Any) -> tuple[Said, str | None]:
        raw = api.completions.with_raw_response.create(
            **{
                "model": "base",
                "prompt": "Once upon a time",
                "max_tokens": 10,
                "temperature": 0,
                **with_tokens(**options),
            }
        )
        return said_in_completion(raw.parse().choices[0]), raw.headers.get("x-palign-persona")

    def response(**options: Any) -> tuple[Said, str | None]:
        raw = api.responses.with_raw_response.create(
            **{
                "model": "base",
                "input": "Hello, who are you?",
                "max_output_tokens": 10,
                "temperature": 0,
                **with_tokens(**options),
            }
        )
        return said_in_response(raw.parse()), raw.headers.get("x-palign-persona")

    for ask in (completion, response):
        plain, steered = ask(), ask(extra_body={"persona": "p3"})
        assert steered[0] != plain[0]
        assert plain[1] is None
        assert str(steered[1]).startswith("p3@")
        assert ask(model="base@p3") == steered
        # The client's completions call has no metadata parameter of its own.
        assert ask(extra_body={"metadata": {"persona": "p3"}}) == steered
    *events, last = api.responses.create(
        model="base", input="Hello, who are you?", max_output_tokens=10, temperature=0, stream=True,
        **with_tokens({"persona": "p3"}),
    )  # fmt: skip
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    whole = said_in_response(last.response)
    assert whole == response(extra_body={"persona": "p3"})[0]
    assert "".join(deltas) == whole.text


def test_n_samples_and_logprobs_work(server: Server) -> None:
    answer = client(server).chat.completions.create(
        model="base", messages=MESSAGES, max_tokens=4, n=3, temperature=1, seed=1, logprobs=True,
        extra_body={"persona": "p4"},
    )  # fmt: skip
    assert len(answer.choices) == 3
    assert all(choice.logprobs for choice in answer.choices)


REFUSED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "unknown persona": ("chat", {"persona": "nobody"}, 404, "persona_not_found"),
    "unknown persona in metadata": ("chat", {"metadata": {"persona": "nobody"}}, 404, "persona_not_found"),
    "unknown persona in model": ("chat", {"model": "base@nobody"}, 404, "persona_not_found"),
    "unknown persona in a blend": ("chat", {"persona": {"mix": {"p0": 1, "nobody": 0}}}, 404, "persona_not_found"),
    "too strong": ("chat", {"persona": {"id": "p0", "strength": 3.1}}, 400, "persona_invalid"),
    "too strong together": ("chat", {"persona": {"mix": {"p0": 2, "p1": -2}}}, 400, "persona_invalid"),
    "strength true": ("chat", {"persona": {"id": "p0", "strength": True}}, 400, "persona_invalid"),
    "strength text": ("chat", {"persona": {"id": "p0", "strength": "much"}}, 400, "persona_invalid"),
    "empty mix": ("chat", {"persona": {"mix": {}}}, 400, "persona_invalid"),
    "long mix": ("chat", {"persona": {"mix": {f"p{i}": 0.1 for i in range(9)}}}, 400, "persona_invalid"),
    "path-like": ("chat", {"persona": "../p0"}, 400, "persona_invalid"),
    "number": ("chat", {"persona": 7}, 400, "persona_invalid"),
    "conflict with metadata": ("chat", {"persona": "p0", "metadata": {"persona": "p1"}}, 400, "persona_conflict"),
    "conflict with model": ("chat", {"persona": "p0", "model": "base@p1"}, 400, "persona_conflict"),
    "reserved key": ("chat", {"vllm_xargs": {"palign": "p0"}}, 400, "persona_invalid"),
    "reserved key beside a persona": ("chat", {"persona": "p0", "vllm_xargs": {"palign": "p0"}}, 400, "persona_invalid"),
    "reserved salt": ("chat", {"cache_salt": "palign:0"}, 400, "persona_invalid"),
    "misspelt field": ("chat", {"personas": ["p0"]}, 400, "persona_invalid"),
    "extra_body sent as a field": ("chat", {"extra_body": {"persona": "p0"}}, 400, "persona_invalid"),
    "capital field": ("chat", {"Persona": "p0"}, 400, "persona_invalid"),
    "strength beside the persona": ("chat", {"persona": "p0", "persona_strength": 2}, 400, "persona_invalid"),
    "beam search": ("chat", {"persona": "p0", "use_beam_search": True, "n": 2}, 400, "persona_invalid"),
    "completions": ("completions", {"prompt": "x", "persona": "nobody"}, 404, "persona_not_found"),
    "responses": ("responses", {"input": "x", "persona": "nobody"}, 404, "persona_not_found"),
    "anthropic messages": ("messages", {"persona": "p0"}, 400, "persona_invalid"),
    "tokenize": ("/tokenize", {"prompt": "x", "persona": "p0"}, 400, "persona_invalid"),
    "tokens in, tokens out": (
        "/inference/v1/generate",
        {"token_ids": [1, 2], "sampling_params": {"extra_args": {"palign": "p0"}}},
        400,
        "persona_invalid",
    ),
}  # fmt: skip


DOCUMENTED = {
    "beam search": "beam search with a persona",
    "anthropic messages": "/v1/messages with a persona",
    "tokens in, tokens out": "/inference/v1/generate with a persona",
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            fault,
            marks=[pytest.mark.shows("refusals", DOCUMENTED[fault])] if fault in DOCUMENTED else [],
        )
        for fault in REFUSED
    ],
)
def test_what_cannot_be_applied_is_an_error_the_client_sees(
    server: Server, fault: str, record_property: Callable[[str, object], None]
) -> None:
    path, body, status, code = REFUSED[fault]
    path = {"chat": "/v1/chat/completions"}.get(path, path if path[0] == "/" else f"/v1/{path}")
    messages = {"messages": MESSAGES} if path.endswith(("chat/completions", "messages")) else {}
    reply = server.post(path, **{**messages, "max_tokens": 4, **body})
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert error["param"]
    record_property("said", error["message"])
    assert "x-palign-persona" not in reply.headers


def test_an_escaped_or_utf16_field_name_is_seen_too(server: Server) -> None:
    text = json.dumps({"model": "base", "messages": MESSAGES, "max_tokens": 2, "persona": "nobody"})
    headers = {"content-type": "application/json"}
    for body in (
        text.replace("persona", "p\\u0065rsona").encode(),
        text.encode("utf-16"),
        text.encode("utf-32"),
    ):
        reply = httpx.post(
            f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=60
        )
        assert reply.status_code == 404, reply.text


@pytest.mark.parametrize(
    "more",
    [
        '"persona": "p0", "persona": "p1"',
        '"persona": "p0", "persona": null',
        '"metadata": {"persona": "p0"}, "metadata": {}',
        '"metadata": {"persona": "p0", "persona": null}',
        '"persona": {"id": "p0", "strength": 1, "strength": 2}',
        '"persona": {"mix": {"p0": 1, "p0": 0.5}}',
        '"model": "base@p0", "model": "base"',
    ],
)
def test_a_key_given_twice_is_refused(server: Server, more: str) -> None:
    body = '{"model": "base", ' if '"model"' not in more else "{"
    reply = httpx.post(
        f"{server.url}/v1/completions",
        content=f'{body}"prompt": "x", "max_tokens": 1, {more}}}',
        headers={"content-type": "application/json"},
    )
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "persona_invalid"
    assert "twice" in reply.json()["error"]["message"]


def test_words_that_look_like_ours_in_a_prompt_change_nothing(server: Server) -> None:
    messages = [
        {"role": "user", "content": 'My persona is "p0", mail me at base@p0. {"palign": 1} \\u0070'}
    ]
    reply = server.post("/v1/chat/completions", messages=messages, max_tokens=4)
    assert reply.status_code == 200
    assert "x-palign-persona" not in reply.headers


def test_no_such_base_model_stays_vllms_answer(server: Server) -> None:
    reply = server.post("/v1/chat/completions", model="other@p0", messages=MESSAGES)
    assert reply.status_code == 404
    assert "other@p0" in reply.json()["error"]["message"]


def test_the_openai_client_picks_personas_from_the_list_of_models_on_every_endpoint(
    tiny_server: Server,
) -> None:
    web = client(tiny_server)
    models = {model.id: model for model in web.models.list()}
    assert next(iter(models)) == "base"
    assert {"base@p0", "base@p23"} <= set(models)
    # Clients size their prompts by it.
    lengths = [models[name].model_dump()["max_model_len"] for name in ("base", "base@p0")]
    assert lengths == [256, 256]

    def answers(model: str, **more: Any) -> list[Said]:
        fields = {"model": model, "temperature": 0, **with_tokens(**more)}
        chat: Any = {"messages": MESSAGES, "max_tokens": 8, **fields}
        whole = said_in_chat(web.chat.completions.create(**chat).choices[0])
        assert said_in_chunks(web.chat.completions.create(**chat, stream=True)) == whole
        text = web.completions.create(prompt="Once", max_tokens=8, **fields)
        response = web.responses.create(input="Once", max_output_tokens=8, **fields)
        return [whole, said_in_completion(text.choices[0]), said_in_response(response)]

    plain, p0 = answers("base"), answers("base@p0")
    assert p0 == answers("base", extra_body={"persona": "p0"})
    assert all(one != other for one, other in zip(plain, p0, strict=True))
    with pytest.raises(openai.NotFoundError) as refused:
        answers("base@nobody")
    assert refused.value.code == "persona_not_found"


def test_requests_at_once_get_what_they_get_alone(tiny_server: Server) -> None:
    """In float32: in bfloat16 stock vLLM's own answers depend on the size of the batch."""
    bodies: list[dict[str, Any]] = [
        {}, {"persona": "p0"}, {"model": "base@p2"}, {"persona": {"id": "p1", "strength": -0.5}}, {"persona": "p5"},
    ]  # fmt: skip
    fields = {
        "model": "base",
        "prompt": ["Once upon a time", "Tell me"],
        "max_tokens": 8,
        "temperature": 0,
        "return_token_ids": True,
    }

    def said(reply: httpx.Response) -> list[Said]:
        choices = reply.json()["choices"]
        return [Said(choice["text"], tuple(choice["token_ids"])) for choice in choices]

    alone = [said(tiny_server.post("/v1/completions", **{**fields, **body})) for body in bodies]
    assert len({str(answer) for answer in alone}) == len(bodies)

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=120) as web:
            url = f"{tiny_server.url}/v1/completions"
            return await asyncio.gather(
                *(web.post(url, json={**fields, **body}) for body in bodies * 3)
            )

    for index, reply in enumerate(asyncio.run(together())):
        assert said(reply) == alone[index % len(bodies)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12) | st.sampled_from(["p0", "p1", "nobody"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["id", "mix", "strength", "persona", "persona_strength", "palign", "p0"]) | st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
hostile_bodies = st.fixed_dictionaries(
    {},
    optional={
        "persona": json_values,
        "metadata": json_values,
        "model": st.sampled_from(["base", "base@p0", "base@", "base@@", "base@ü", "@p0"])
        | json_values,
        "vllm_xargs": json_values,
        "cache_salt": json_values,
        "n": st.sampled_from([1, 2]),
    },
)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=hostile_bodies)
def test_hostile_bodies_get_a_4xx_or_a_proper_answer(
    tiny_server: Server, body: dict[str, Any]
) -> None:
    fields = {"model": "base", "prompt": "x", "max_tokens": 1, **body}
    reply = httpx.post(
        f"{tiny_server.url}/v1/completions", content=json.dumps(fields).encode(),
        headers={"content-type": "application/json"}, timeout=60,
    )  # fmt: skip
    assert reply.status_code in (200, 400, 404), (fields, reply.status_code, reply.text)
    if reply.status_code != 200:
        assert reply.json()["error"]["message"]
    elif body.get("persona") is not None:
        assert "x-palign-persona" in reply.headers, "asked for and not applied"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"persona"', b'{"persona": "p0"', b"\xff\xfepersona", b"[" * 200_000,
     b'{"persona":' + b"[" * 200_000, b'{"persona": {"id": "p0", "strength": 1' + b"0" * 5000 + b"}}",
     b'{"x": {' + b'"a":1,' * 50_000 + b'"persona": "p0"}}'],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
def test_broken_json_never_breaks_the_server(tiny_server: Server, content: bytes) -> None:
    reply = httpx.post(
        f"{tiny_server.url}/v1/completions",
        content=content,
        headers={"content-type": "application/json"},
        timeout=60,
    )
    assert 400 <= reply.status_code < 500, reply.text
    assert httpx.get(f"{tiny_server.url}/health").status_code == 200


def test_kv_blocks_are_shared_only_under_the_same_effect(tiny_server: Server) -> None:
    prompt = [7 + 13 * index for index in range(100)]

    def cached(path: str = "/v1/completions", **body: Any) -> int:
        fields = (
            {"messages": [{"role": "user", "content": "same words " * 40}]}
            if "chat" in path
            else {"prompt": prompt}
        )
        reply = tiny_server.post(path, max_tokens=1, **fields, **body)
        assert reply.status_code == 200, reply.text
        details = reply.json()["usage"]["prompt_tokens_details"] or {}
        return int(details.get("cached_tokens") or 0)

    def everywhere(**persona: Any) -> dict[str, Any]:
        return {"persona": {**persona, "scope": "all"}}

    effects: list[dict[str, Any]] = [
        {}, everywhere(id="p3"), everywhere(id="p3", strength=0.5), everywhere(id="p4"),
        everywhere(mix={"p3": 0.5, "p4": 0.5}), {**everywhere(id="p3"), "cache_salt": "mine"}, {"cache_salt": "mine"},
    ]  # fmt: skip
    for path in ("/v1/completions", "/v1/chat/completions"):
        assert [cached(path, **body) for body in effects] == [0] * len(effects)
        assert all(cached(path, **body) > 0 for body in effects)
        metadata = {"persona": "p3", "persona_strength": "0.5", "persona_scope": "all"}
        assert cached(path, metadata=metadata) > 0
        # The prompt that nobody steers is everybody's.
        assert cached(path, model="base@p5") > 0
        assert cached(path, persona="p5", cache_salt="yours") == 0


def test_neighbours_answers_do_not_change_beside_hostile_requests(tiny_server: Server) -> None:
    good: list[dict[str, Any]] = [
        {},
        {"persona": "p5"},
        {"persona": {"mix": {"p6": -1, "p7": 0.5}}},
    ]
    bad: list[bytes] = [
        b'{"persona": "p0"', b"\xff\xfe\0", b'{"persona":' + b"[" * 50_000, b'{"model": "base", "prompt": "x", "persona": 1e999}',
        b'{"model": "base", "prompt": "x", "persona": {"id": "p0", "strength": NaN}}',
        b'{"model": "base@p0", "prompt": "x", "metadata": {"persona": "p1"}}',
        b'{"model": "base", "prompt": "x", "vllm_xargs": {"palign": "p0"}}',
        b'{"model": "base", "prompt": {"persona": "p0"}, "persona": "p0", "max_tokens": -5}',
        b'{"model": "base", "prompt": "x", "persona": "p0", "n": 0}',
    ]  # fmt: skip
    fields = {
        "model": "base", "prompt": "Once", "max_tokens": 8, "temperature": 0, "logprobs": 0,
        "return_token_ids": True,
    }  # fmt: skip

    async def run() -> None:
        async with httpx.AsyncClient(timeout=120) as web:

            async def ask(body: dict[str, Any]) -> Any:
                reply = await web.post(f"{tiny_server.url}/v1/completions", json={**fields, **body})
                (choice,) = reply.json()["choices"]
                return choice["text"], choice["token_ids"]

            async def attack(content: bytes) -> int:
                headers = {"content-type": "application/json"}
                reply = await web.post(
                    f"{tiny_server.url}/v1/completions", content=content, headers=headers
                )
                return reply.status_code

            alone = [await ask(body) for body in good]
            for _ in range(10):
                *answers, statuses = await asyncio.gather(
                    *(ask(body) for body in good), asyncio.gather(*map(attack, bad))
                )
                assert answers == alone
                assert all(400 <= status < 500 for status in statuses), statuses

    asyncio.run(run())
