"""The whole page: whom it talks to, what it keeps, how it stands on a phone and before a screen reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tests.play.conftest import (
    LONG,
    World,
    answers,
    ask,
    choose,
    drawn,
    figures,
    give_key,
    in_thread,
    set_number,
)
from vllm_palign.play.client import Server
from vllm_palign.play.page import PlayPage

OpenTab = Callable[..., Page]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


def show(page: Page, view: str) -> None:
    page.get_by_role("tab", name=view).click()
    page.wait_for_selector({"Meet": "#question", "Make": "#answer-1", "Look": "#list label"}[view])


def blend_and_error(page: Page) -> None:
    """A column of two personas, and one whose persona is unknown."""
    choose(page, 1, "alice", "bob")
    page.locator("#weight-1-1").get_by_text("Weight of bob").wait_for()
    choose(page, 2, "nobody")
    ask(page, "Hello?")
    assert "no persona" in figures(page, 2)


def look_at_alice(page: Page) -> None:
    show(page, "Look")
    page.get_by_role("radio", name="alice").click()
    page.wait_for_selector("#card article")


def make(page: Page, way: str, shown: str) -> None:
    page.get_by_role("tab", name="Make").click()
    page.get_by_label(way).click()
    page.wait_for_selector(shown)


STATES: dict[str, Callable[[Page], None]] = {
    "answers": lambda page: ask(page, "Hello?"),
    "a blend and an error": blend_and_error,
    "statements": lambda page: show(page, "Make"),
    "sliders": lambda page: make(page, "Set five traits", "#trait-E"),
    "a file": lambda page: make(page, "Take a file", "#file"),
    "a card": look_at_alice,
}


@pytest.mark.parametrize(
    "options", [PHONE, {"color_scheme": "dark"}], ids=["a light phone", "a dark desk"]
)
def test_no_view_has_serious_findings_of_axe_and_none_is_wider_than_the_screen(
    open_tab: OpenTab, options: dict[str, object]
) -> None:
    page = open_tab(**options)
    page.evaluate("scrollTo(0, 0)")
    assert page.locator("#ask").evaluate(
        "e => e.getBoundingClientRect().bottom <= innerHeight"
    ) or not options.get("is_mobile"), "what asks is out of sight"
    for name, bring in STATES.items():
        bring(page)
        page.wait_for_timeout(300)  # colours fade
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert not serious, f"{name}: {json.dumps(serious, indent=1)[:4000]}"
        wide = page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, f"{name}: {wide} px wider than the screen"


def tab_to(page: Page, selector: str, key: str = "Tab") -> None:
    for _ in range(60):
        page.keyboard.press(key)
        if page.evaluate(f"document.activeElement?.closest('{selector}') != null"):
            return
    raise AssertionError(f"the Tab key does not reach {selector}")


def view_by_keyboard(page: Page, number: int, shown: str) -> None:
    tab_to(page, f"[role=tab]:nth-of-type({number})", key="Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(shown)


def test_meeting_and_answering_need_a_keyboard_alone(open_tab: OpenTab, world: World) -> None:
    page = open_tab(None)
    drawn(page, "#key input")
    tab_to(page, "#key")
    page.keyboard.type(world.keys["manage"])
    page.keyboard.press("Enter")
    page.wait_for_selector(".status.there")
    tab_to(page, "#who-1 input")
    page.wait_for_selector("#who-1 .token")
    page.keyboard.press("Backspace")
    page.wait_for_selector("#who-1 .token", state="detached")
    page.keyboard.type("bob")
    page.keyboard.press("Enter")
    page.wait_for_selector("#who-1 .token")
    tab_to(page, "#strength-1")
    page.keyboard.press("ArrowLeft")
    tab_to(page, "#question", key="Shift+Tab")
    page.keyboard.type("Hello?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:enabled")
    page.wait_for_selector("#ask:enabled")
    assert len(answers(page, 1)) == 1 and figures(page, 1).startswith("bob (")
    view_by_keyboard(page, 2, "#answer-1")
    page.keyboard.press("3")
    page.wait_for_function("document.querySelector('#statement').innerText.includes('1 of ')")


def test_making_looking_and_deleting_need_a_keyboard_alone(open_tab: OpenTab, world: World) -> None:
    page = open_tab()
    view_by_keyboard(page, 2, "#way")
    tab_to(page, "#way input[value=sliders]")
    page.keyboard.press("Space")
    page.wait_for_selector("#trait-E")
    tab_to(page, "#trait-E")
    page.keyboard.type("2")
    tab_to(page, "#name")
    page.keyboard.type("keyed")
    tab_to(page, "#make")
    page.keyboard.press("Enter")
    page.wait_for_selector("#welcome .said")
    made = world.call("GET", "/v1/personas/keyed").json()
    assert made["fit"]["sliders"]["E"] == 2
    view_by_keyboard(page, 3, "#list label")
    tab_to(page, "#search")
    page.keyboard.insert_text("keyed")  # at once, so that there is one search
    page.wait_for_function("document.querySelectorAll('#list label').length == 1")
    tab_to(page, "#list")
    page.keyboard.press("Space")
    page.wait_for_selector("#card article")
    tab_to(page, "#delete")
    assert page.locator("[role=listbox]").count() == 0, "a list is left open"
    page.keyboard.press("Enter")
    page.wait_for_selector("#sure")
    tab_to(page, "#do-it")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#look-told').innerText == 'keyed is deleted.'")
    assert world.call("GET", "/v1/personas/keyed").status_code == 404


def test_the_key_stays_in_its_tab(open_tab: OpenTab, world: World) -> None:
    page = open_tab(None)
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    give_key(page, world.keys["manage"])
    page.wait_for_selector(".status.there")
    ask(page, "Hello?")
    key = world.keys["manage"]
    assert not any(key in url for url in [*urls, page.url])
    assert page.evaluate("JSON.stringify([localStorage, document.cookie])").count(key) == 0
    assert page.evaluate(
        "indexedDB.databases().then(all => all.filter(one => !one.name.startsWith('_')).length)"
    ) == 0  # fmt: skip
    page.reload()
    page.wait_for_selector(".status.there")  # the tab itself has it still
    other = page.context.new_page()
    other.goto(world.url)
    other.wait_for_selector(".status.gone")
    assert "wants an API key" in other.locator("#status").inner_text()


def test_two_tabs_do_not_see_each_others_conversations(open_tab: OpenTab) -> None:
    one, other = open_tab(), open_tab()
    ask(one, "My name is Zebedee. What is my name?")
    ask(other, "What is my name?")
    assert len(answers(other, 0)) == 1
    other.locator("#program-0").get_by_role("button", name="As a program").click()
    assert "Zebedee" not in other.locator("#curl-0 textarea").input_value()
    one.reload()
    one.wait_for_selector(".status.there")
    assert answers(one, 0) == []


def test_a_wrong_key_is_a_sentence_and_so_is_one_that_is_no_key(open_tab: OpenTab) -> None:
    page = open_tab(None)
    for key in ("palign_wrong", "schlüssel\u2028", "x" * 5000):
        give_key(page, key)
        page.wait_for_function(
            "document.querySelector('#status').innerText.includes('does not know this API key')"
        )
        give_key(page, "")
        page.wait_for_function(
            "document.querySelector('#status').innerText.includes('wants an API key')"
        )


def test_a_server_that_goes_away_is_said_to_and_comes_back_by_itself(
    open_tab: OpenTab, world: World
) -> None:
    page = open_tab()
    set_number(page, "#longest", 800)
    page.locator("#question textarea").fill(LONG)
    page.locator("#ask").click()
    page.wait_for_function("document.querySelectorAll('.bot.message').length == 3")
    world.line.cut()
    try:
        page.wait_for_selector("#ask:enabled")
        # What a column says may be drawn a moment after the buttons.
        page.get_by_text("broke off").first.wait_for()
        page.wait_for_selector(".status.gone")
        assert "does not answer" in page.locator("#status").inner_text()
    finally:
        world.line.mend()
    page.wait_for_selector(".status.there")
    set_number(page, "#longest", 16)
    ask(page, "Hello?")
    assert len(answers(page, 0)) >= 1 and "first token" in figures(page, 0)


def test_a_page_that_was_there_before_its_server_asks_for_the_key_when_it_comes(
    open_tab: OpenTab, world: World
) -> None:
    world.line.cut()
    try:
        page = open_tab(None)
        page.wait_for_selector(".status.gone")
    finally:
        world.line.mend()
    give_key(page, world.keys["manage"])
    page.wait_for_selector(".status.there")


def test_a_server_that_comes_back_with_another_model_is_noticed() -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "second"}]})
        return httpx.Response(200, json={"data": [], "has_more": False})

    server = Server("http://palign.test")
    server._http = httpx.AsyncClient(base_url=server.url, transport=httpx.MockTransport(reply))
    page = PlayPage(server)
    look = ("", [""], None, "")
    changes = in_thread(page._watch("", "", None, True, "", "first", *look))
    assert changes[page.model] == "second" and "second at" in changes[page.status]
    assert in_thread(page._watch("", "", None, True, "", "second", *look)) == gr.skip()


def test_the_first_paint_takes_less_than_two_seconds(open_tab: OpenTab) -> None:
    page = open_tab(None)
    paints = []
    painted = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    for _ in range(10):  # other tests run beside this one
        page.wait_for_function(painted)
        paints.append(page.evaluate(painted))
        if paints[-1] < 2000:
            break
        page.reload()
    assert paints[-1] < 2000, paints


def test_nobody_else_is_answered_and_nothing_else_is_loaded(
    open_tab: OpenTab, world: World
) -> None:
    asked = httpx.get(world.url, headers={"Host": "evil.example"})
    assert asked.status_code == 400
    asked = httpx.post(
        f"{world.url}/gradio_api/queue/join", json={}, headers={"Origin": "http://evil.example"}
    )
    assert asked.status_code == 403
    reply = httpx.get(world.url)
    assert "connect-src 'self'" in reply.headers["content-security-policy"]
    page = open_tab()
    assert (
        page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', error => 'refused')")
        == "refused"
    )
    for path in ("/docs", "/gradio_api/runs", "/gradio_api/mcp/"):
        assert httpx.get(world.url + path).status_code >= 400, path


def test_the_page_listens_on_this_machine_only(world: World) -> None:
    port = int(world.url.rpartition(":")[2])
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    assert listening == [f"0100007F:{port:04X}"]
