"""Meet, in a real browser before a real server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.play.conftest import LONG, World, answers, ask, choose, figures, finish, set_number
from vllm_palign import Persona
from vllm_palign.play.meet import _name_weights, strongest

OpenTab = Callable[..., Page]
QUESTION = "How do you feel about meeting new people?"


def request(world: World, question: str, persona: object = None) -> tuple[str, str]:
    """(answer, reply header) as any client gets it, with the page's own sampling."""
    body = {
        "model": "base", "messages": [{"role": "user", "content": question}], "max_tokens": 24,
        "temperature": 0.7, "seed": 1, **({"persona": persona} if persona else {}),
    }  # fmt: skip
    reply = world.call("POST", "/v1/chat/completions", json=body)
    return reply.json()["choices"][0]["message"]["content"], reply.headers.get(
        "x-palign-persona", ""
    )


@pytest.mark.parametrize(
    ("fit", "end"),
    [
        ({}, 3.0), ({"max_strength": 3.4}, 3.0), ({"max_strength": 1.7}, 1.7), ({"max_strength": 2}, 2.0),
        ({"max_strength": 1.79}, 1.7), ({"max_strength": 0.01}, 0.1), ({"max_strength": 1e300}, 3.0),
    ],
)  # fmt: skip
def test_a_slider_ends_at_the_last_step_that_the_file_allows(
    fit: dict[str, float], end: float
) -> None:
    assert strongest({"fit": fit}) == end


def test_whoever_stays_in_a_blend_keeps_its_weight() -> None:
    who, *sliders = _name_weights(["alice", "bob", "carol"], ["alice", "bob"], 0.9, 0.2, 0.1)
    # Those in their place are not written: somebody may be moving them.
    assert [one.get("value") for one in sliders] == [None, None, 0.5]
    who, *sliders = _name_weights(["bob", "carol"], who, 0.9, 0.2, 0.1)
    assert [one["value"] for one in sliders[:2]] == [0.2, 0.1] and not sliders[2]["visible"]


def test_answers_stream_side_by_side_at_once_and_the_header_says_whose_they_are(
    open_tab: OpenTab, world: World
) -> None:
    page = open_tab()
    choose(page, 1, "alice")
    choose(page, 2, "bob")
    set_number(page, "#strength-2", -1.5)
    set_number(page, "#longest", 800)
    # Inside the page: from out here a quick machine's answers are over between two looks.
    page.evaluate("""() => {
        window.seen = [];
        const look = () => window.seen.push([0, 1, 2].map(
            at => document.querySelector(`#chat-${at} .bot.message`)?.innerText.length ?? 0));
        new MutationObserver(look).observe(
            document.querySelector('#columns'), {childList: true, subtree: true, characterData: true});
    }""")
    page.locator("#question textarea").fill(LONG)
    page.locator("#ask").click()
    # No column waits for another: all have begun, and all go on.
    page.wait_for_function("""() => {
        const begun = window.seen.filter(at => at.every(length => length));
        return begun.length && begun.at(-1).every((length, column) => length > begun[0][column]);
    }""")
    page.locator("#stop").click()
    page.wait_for_selector("#ask:enabled", timeout=30_000)
    page.wait_for_function("document.querySelector('#figures-2').innerText.includes('stopped')")
    assert "plain: nothing was steered" in figures(page, 0)
    digest = world.call("GET", "/v1/personas/bob").json()["digest"][:12]
    assert f"bob ({digest}) at strength −1.5, answers steered" in figures(page, 2)
    for column in range(3):
        assert "first token" in figures(page, column)
        assert "tokens/s" in figures(page, column)
    assert len({answers(page, column)[-1] for column in range(3)}) == 3


def test_every_column_has_a_conversation_of_its_own_and_goes_on_with_it(
    open_tab: OpenTab, world: World
) -> None:
    page = open_tab()
    choose(page, 1, "alice")
    choose(page, 2)
    ask(page, QUESTION)
    ask(page, "And why?")
    assert [len(answers(page, column)) for column in range(3)] == [2, 2, 0]
    page.locator("#program-1").get_by_role("button", name="As a program").click()
    sent = page.locator("#curl-1 textarea").input_value()
    assert '"content": "And why?"' in sent and sent.count('"role": "assistant"') == 1
    page.locator("#clear").click()
    page.wait_for_function("document.querySelectorAll('.bot.message').length == 0")


def test_again_asks_the_last_question_once_more_with_what_the_sliders_say_now(
    open_tab: OpenTab,
) -> None:
    page = open_tab()
    choose(page, 1, "alice")
    choose(page, 2)
    ask(page, QUESTION)
    first = answers(page, 1), answers(page, 0)
    set_number(page, "#strength-1", 0)
    page.locator("#again").click()
    finish(page)
    assert len(answers(page, 1)) == 1 and answers(page, 1) != first[0]
    assert answers(page, 0) == first[1], "the same seed says the same"
    assert answers(page, 1) == answers(page, 0), "strength 0 is the plain model"


def test_stop_ends_the_answers_and_keeps_what_was_said(open_tab: OpenTab, world: World) -> None:
    page = open_tab()
    set_number(page, "#longest", 800)
    page.locator("#question textarea").fill(LONG)
    page.locator("#ask").click()
    page.wait_for_function("document.querySelectorAll('.bot.message').length == 3")
    page.locator("#stop").click()
    page.wait_for_selector("#ask:enabled", timeout=30_000)
    # What a column says may be drawn a moment after the buttons.
    page.get_by_text("stopped").first.wait_for()
    wait_until_idle(world)


def test_a_column_that_is_answering_does_not_go(open_tab: OpenTab) -> None:
    page = open_tab()
    set_number(page, "#longest", 800)
    page.locator("#question textarea").fill(LONG)
    page.locator("#ask").click()
    page.wait_for_function("document.querySelectorAll('.bot.message').length == 3")
    with page.expect_response("**/queue/join*"):
        page.locator("#remove-1").click()
    page.wait_for_timeout(500)  # what the reply would take away
    assert page.locator("#stop").is_enabled() and page.locator("#column-1").count() == 1
    page.locator("#stop").click()
    page.wait_for_selector("#ask:enabled")
    page.locator("#remove-1").click()
    page.wait_for_selector("#column-1", state="detached")


def test_a_tab_that_is_closed_ends_its_requests(open_tab: OpenTab, world: World) -> None:
    page = open_tab()
    set_number(page, "#longest", 1000)
    page.locator("#question textarea").fill(LONG)
    page.locator("#ask").click()
    page.wait_for_function("document.querySelectorAll('.bot.message').length == 3")
    page.close()
    wait_until_idle(world)


def wait_until_idle(world: World) -> None:
    for _ in range(300):
        text = world.call("GET", "/metrics").text
        lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
        if lines and not any(float(line.rpartition(" ")[2]) for line in lines):
            return
        time.sleep(0.1)
    raise AssertionError("the server goes on writing for nobody")


def test_an_error_is_a_sentence_in_its_own_column_and_the_others_go_on(open_tab: OpenTab) -> None:
    page = open_tab()
    choose(page, 1, "nobody")
    choose(page, 2, "alice", "bob")
    for part in (0, 1):
        set_number(page, f"#weight-2-{part}", 1)
    set_number(page, "#strength-2", 2)
    ask(page, QUESTION)
    assert "There is no persona 'nobody' on this server." in figures(page, 1)
    assert "Too strong: this amounts to 4, and the server allows at most 3." in figures(page, 2)
    assert len(answers(page, 0)) == 1 and not answers(page, 1) and not answers(page, 2)
    # Mended, the column takes part again.
    set_number(page, "#strength-2", 1)
    page.locator("#again").click()
    finish(page)
    assert "1 × alice" in figures(page, 2) and "1 × bob" in figures(page, 2)


def test_a_blend_of_three_is_asked_for_with_each_ones_weight(
    open_tab: OpenTab, world: World, smol_personas: tuple[Path, dict[str, Persona]]
) -> None:
    weights = {"alice": 0.6, "bob": -0.3, "carol": 0.25}
    third = smol_personas[1]["p2"].to_bytes()
    assert world.call("PUT", "/v1/personas/carol", content=third).status_code == 201
    try:
        page = open_tab()
        choose(page, 1, *weights)
        choose(page, 2)
        # Named by the page's server, a moment after the choice.
        for part, name in enumerate(weights):
            page.locator(f"#weight-1-{part}").get_by_text(f"Weight of {name}").wait_for()
        for part, weight in enumerate(weights.values()):
            set_number(page, f"#weight-1-{part}", weight)
        set_number(page, "#strength-1", 1.5)
        ask(page, QUESTION)
        expected, applied = request(world, QUESTION, {"mix": weights, "strength": 1.5})
        assert answers(page, 1) == [" ".join(expected.split())] != answers(page, 0)
        assert all(f"{name}@" in applied for name in weights)
        for part in ("0.6 × alice", "−0.3 × bob", "0.25 × carol"):
            assert part in figures(page, 1)
    finally:
        world.call("DELETE", "/v1/personas/carol")


def test_a_request_copied_from_the_page_gives_the_same_answer_in_a_shell_and_in_python(
    open_tab: OpenTab, world: World
) -> None:
    page = open_tab()
    question = """Say "it's", $HOME and `ls`."""
    choose(page, 1, "alice")
    choose(page, 2)
    ask(page, question)
    page.locator("#program-1").get_by_role("button", name="As a program").click()
    environment = {"PALIGN_API_KEY": world.keys["use"], "PATH": "/usr/bin:/bin"}
    texts = {}
    for language in ("curl", "python"):
        page.locator(f"#{language}-1").get_by_role("button", name="Copy").click()
        page.wait_for_function(
            "begin => navigator.clipboard.readText().then(text => text.startsWith(begin))",
            arg={"curl": "curl", "python": "import"}[language],
        )
        texts[language] = page.evaluate("navigator.clipboard.readText()")
        assert not any(key in texts[language] for key in world.keys.values())
    said = subprocess.run(
        [sys.executable, "-c", texts["python"]], env=environment, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    shown = " ".join(answers(page, 1)[0].split())
    expected, _ = request(world, question, {"id": "alice", "strength": 1.0})
    assert said.strip() == expected.strip()
    assert shown[:40] in " ".join(said.split())
    done = subprocess.run(
        ["bash", "-c", texts["curl"]], env=environment, capture_output=True, text=True, check=True
    )
    assert expected[:40] in done.stdout.encode().decode("unicode_escape")


def test_columns_come_and_go(open_tab: OpenTab) -> None:
    page = open_tab()
    page.locator("#add").click()
    page.wait_for_selector("#column-3")
    page.wait_for_selector("#add:disabled")
    page.locator("#remove-1").click()
    page.wait_for_selector("#column-1", state="detached")
    ask(page, "Hello?")
    assert len(answers(page, 0)) == 1 and len(answers(page, 2)) == 1
