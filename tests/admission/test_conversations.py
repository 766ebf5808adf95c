"""Where a conversation's answers begin: with vLLM's own renderer and templates of the kinds there are."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_palign.admission import conversations

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML.replace("assistant\n{%", "assistant\n<think>\n\n</think>\n\n{%")
"""Opens the answer with what the past is not shown with."""
TOOLS_LAST = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ messages|length }}assistant:"
"""Says something of the whole conversation before every answer."""
USER_FIRST = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('a user first') }}{% endif %}" + CHATML
)


def said(*turns: str) -> list[dict[str, Any]]:
    """``"role: content"`` each."""
    return [dict(zip(("role", "content"), turn.split(": "), strict=True)) for turn in turns]


SYSTEM, USER, ANSWER = "system: Be kind.", "user: Who are you?", "assistant: A friend."
AGAIN = "user: And what do you like?"
TOOL = {"role": "tool", "tool_call_id": "1", "content": "4"}


@pytest.fixture(scope="module")
def renderer(tiny_model: Path) -> Any:
    from vllm import EngineArgs
    from vllm.renderers import renderer_from_config

    return renderer_from_config(EngineArgs(str(tiny_model)).create_engine_config())


def rendered(renderer: Any, messages: Any, template: str = CHATML, **options: Any) -> Any:
    """Token ids and the index of the first steered one, as both kinds of front end find it."""
    from vllm.renderers.params import ChatParams

    kwargs = {"add_generation_prompt": True, "continue_final_message": False} | options
    params = ChatParams(chat_template=template, chat_template_kwargs=kwargs)
    found = []
    for online in (True, False):
        _, (prompt,) = renderer.render_chat([messages], params)
        if online:
            note = conversations.note_first_turn(
                renderer, renderer.render_chat_async, messages, params, None, prompt
            )
            asyncio.run(note)
        else:
            conversations.note_first_turn_later(
                renderer, renderer.render_chat, messages, params, None, prompt
            )
        tokens = prompt["prompt_token_ids"]
        request = SimpleNamespace(prompt_token_ids=tokens, prompt_embeds=None)
        found.append((tokens, conversations.first_answer(request, prompt)))
        assert not any(str(name).startswith("palign") for name in prompt), "nothing is left there"
    assert found[0] == found[1]
    return found[0]


def test_a_first_turn_begins_at_its_last_prompt_token(renderer: Any) -> None:
    tokens, first = rendered(renderer, said(SYSTEM, USER))
    assert first == len(tokens) - 1


@pytest.mark.parametrize(
    "later",
    [
        said(ANSWER, AGAIN),
        said(ANSWER, AGAIN, "assistant: Tea.", "user: Why?"),
        said(ANSWER, "system: Be brief now.", AGAIN),
        [*said("assistant: Let me look."), TOOL],
    ],
)
def test_every_later_turn_begins_where_the_first_one_did(renderer: Any, later: Any) -> None:
    tokens, first = rendered(renderer, said(SYSTEM, USER))
    longer, again = rendered(renderer, [*said(SYSTEM, USER), *later])
    assert longer[: len(tokens)] == tokens
    assert again == first == len(tokens) - 1 < len(longer) - 1


def test_an_answer_that_is_gone_on_with_began_at_its_own_first_token(renderer: Any) -> None:
    tokens, first = rendered(renderer, said(SYSTEM, USER))
    options = {"add_generation_prompt": False, "continue_final_message": True}
    longer, again = rendered(renderer, said(SYSTEM, USER, ANSWER), **options)
    assert longer[: len(tokens)] == tokens
    assert again == first


def test_without_a_generation_prompt_and_an_answer_it_is_the_last_token(renderer: Any) -> None:
    tokens, first = rendered(renderer, said(SYSTEM, USER), add_generation_prompt=False)
    assert first == len(tokens) - 1


def test_a_greeting_comes_first(renderer: Any) -> None:
    opening, first = rendered(renderer, said(SYSTEM))
    tokens, again = rendered(renderer, said(SYSTEM, "assistant: Hello!", USER))
    assert again == first == len(opening) - 1
    assert tokens[: len(opening)] == opening


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (THINKING, said(SYSTEM, USER, ANSWER, AGAIN)),
        (TOOLS_LAST, said(SYSTEM, USER, ANSWER, AGAIN)),
        (USER_FIRST, said("assistant: Hello!", USER)[::-1] + said(ANSWER, AGAIN)),
        # vLLM puts what a developer says into the first message, where the template knows no such role.
        (CHATML, said(SYSTEM, USER, ANSWER, "developer: Be brief now.", AGAIN)),
    ],
)
def test_what_is_not_rendered_as_it_was_begins_at_the_last_prompt_token_or_where_it_did(
    renderer: Any, template: str, messages: Any
) -> None:
    tokens, first = rendered(renderer, messages, template)
    if template == USER_FIRST:
        opening, begun = rendered(renderer, messages[:1], template)
        assert (first, tokens[: len(opening)]) == (begun, opening)
    else:
        assert first == len(tokens) - 1


def test_an_image_before_the_first_answer_is_not_looked_at_again() -> None:
    prompt: dict[str, Any] = {"prompt_token_ids": [1, 2, 3]}
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/never-fetched.png"}}
    messages = [{"role": "user", "content": [image]}, *said(ANSWER, AGAIN)]

    async def never(*_: Any) -> Any:
        raise AssertionError

    asyncio.run(conversations.note_first_turn(never, never, messages, None, None, prompt))
    assert prompt == {"prompt_token_ids": [1, 2, 3]}


def test_a_first_turn_is_rendered_once(renderer: Any) -> None:
    from vllm.renderers.params import ChatParams

    calls = 0

    async def counted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return await renderer.render_chat_async(*args)

    params = ChatParams(chat_template=CHATML, chat_template_kwargs={})

    async def turns() -> None:
        for question in ("user: One?", "user: Two?", "user: Three?"):
            messages = said("system: Rendered once.", USER, ANSWER, question)
            _, (prompt,) = await renderer.render_chat_async([messages], params)
            await conversations.note_first_turn(renderer, counted, messages, params, None, prompt)

    asyncio.run(turns())
    assert calls == 1


def test_each_renderer_has_its_own_first_turns() -> None:
    """Two models in one process, asked the same under the same parameters."""
    from vllm.renderers.params import ChatParams

    messages, params = said("system: Two models.", USER, ANSWER, AGAIN), ChatParams()

    def begins(length: int) -> int:
        async def render(*_: Any) -> Any:
            return None, [{"prompt_token_ids": list(range(length))}]

        prompt: dict[str, Any] = {"prompt_token_ids": list(range(9))}
        asyncio.run(conversations.note_first_turn(render, render, messages, params, None, prompt))
        request = SimpleNamespace(prompt_token_ids=list(range(9)), prompt_embeds=None)
        return conversations.first_answer(request, prompt)

    assert [begins(3), begins(5)] == [2, 4]


def test_a_first_turn_that_took_too_long_is_tried_again_and_one_that_cannot_be_is_not() -> None:
    from vllm.renderers.params import ChatParams

    messages, params = said("system: Never rendered.", USER, ANSWER, AGAIN), ChatParams()
    gone = RuntimeError("cannot schedule new futures after shutdown")
    for error, wanted in ((TimeoutError(), 2), (gone, 2), (ValueError("a user first"), 1)):
        calls = 0

        async def failing(*_: Any, error: Exception = error) -> Any:
            nonlocal calls
            calls += 1
            raise error

        for _ in range(2):
            prompt: dict[str, Any] = {"prompt_token_ids": [1, 2, 3]}
            asyncio.run(
                conversations.note_first_turn(failing, failing, messages, params, None, prompt)
            )
            request = SimpleNamespace(prompt_token_ids=[1, 2, 3], prompt_embeds=None)
            assert conversations.first_answer(request, prompt) == 2
        assert calls == wanted


def test_prompts_of_tokens_and_of_embeddings_begin_at_their_last() -> None:
    tokens = SimpleNamespace(prompt_token_ids=[5, 6, 7], prompt_embeds=None)
    embeds = SimpleNamespace(prompt_token_ids=None, prompt_embeds=[[0.0]] * 4)
    one = SimpleNamespace(prompt_token_ids=[5], prompt_embeds=None)
    begun = functools.partial(conversations.first_answer, prompt={})
    assert [begun(request) for request in (tokens, embeds, one)] == [2, 3, 0]
    assert conversations.first_answer(tokens, "a text") == 2
