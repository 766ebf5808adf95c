"""Make, in a real browser before a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import httpx
from playwright.sync_api import Page, Route

from tests.play.conftest import World, answers, ask, drawn, figures, in_thread, set_number
from vllm_palign import Persona
from vllm_palign.play.client import Server
from vllm_palign.play.make import FILE, Make

OpenTab = Callable[..., Page]


def to_make(page: Page) -> Page:
    page.get_by_role("tab", name="Make").click()
    drawn(page, "#make, #make-notice .trouble")
    return page


def tap(page: Page, *keys: int) -> None:
    for key in keys:
        page.keyboard.press(str(key))


def wait_for_count(page: Page, done: int) -> None:
    page.wait_for_function(f"document.querySelector('#statement').innerText.includes('{done} of ')")


def test_ten_answers_by_keyboard_become_a_persona_that_one_talks_to(
    open_tab: OpenTab, world: World
) -> None:
    page = to_make(open_tab())
    before = page.locator("#radar svg").get_attribute("aria-label")
    assert before and "nothing answered yet" in before
    # Not waiting for anything: no tap is lost, none counts twice.
    tap(page, 5, 1, 5, 1, 5, 1, 5)
    wait_for_count(page, 7)
    page.reload()
    page.wait_for_selector(".status.there")
    to_make(page)
    wait_for_count(page, 7)
    tap(page, 1, 5, 1)
    wait_for_count(page, 10)
    assert "That was all" in page.locator("#statement").inner_text()
    assert "Openness" in str(page.locator("#radar svg").get_attribute("aria-label"))
    page.locator("#name input, #name textarea").fill("nina")
    page.locator("#make").click()
    page.wait_for_selector("#welcome .said")
    assert "nina is there. Expected alignment" in page.locator("#welcome").inner_text()
    persona = world.call("GET", "/v1/personas/nina").json()
    assert persona["fit"]["answered"] == 10
    ask(page, "A friend invites you to a big party. How do you feel?")
    assert f"nina ({persona['digest'][:12]}) at strength 1" in figures(page, 1)
    assert answers(page, 1)[0] != answers(page, 0)[0]


def test_beginning_again_asks_first(open_tab: OpenTab) -> None:
    page = to_make(open_tab())
    tap(page, 5, 1, 5)
    wait_for_count(page, 3)
    for answer, left in (("#stay", 3), ("#forget", 0)):
        page.locator("#restart").click()
        page.locator(answer).click()
        page.wait_for_selector("#restart-sure", state="hidden")
        wait_for_count(page, left)


def test_a_reply_that_was_overtaken_shows_nothing_old(open_tab: OpenTab) -> None:
    """The browser may hear that a tap was taken only after it has heard of the next one's outcome."""
    page = to_make(open_tab())
    wait_for_count(page, 0)
    buttons = page.evaluate(
        "gradio_config.components.filter(c => /^answer-/.test(c.props.elem_id)).map(c => c.id)"
    )
    taps: list[str] = []

    def hold_the_first(route: Route) -> None:
        reply = route.fetch()
        # Nothing else is asked for with a button of the scale; the page looks for its server, too.
        if not taps and route.request.post_data_json["trigger_id"] in buttons:
            taps.append("held")
            page.wait_for_timeout(1500)
            route.fulfill(response=reply)
            page.evaluate("window.late = true")
            return
        route.fulfill(response=reply)

    page.route("**/queue/join*", hold_the_first)
    tap(page, 5, 1)
    wait_for_count(page, 2)
    page.wait_for_function("window.late")
    page.wait_for_timeout(500)  # what the late reply would show
    wait_for_count(page, 2)
    assert "2 of 10 answered" in page.locator("#statement").inner_text()
    page.unroute_all(behavior="ignoreErrors")


def test_sliders_make_a_persona_and_another_of_that_name_is_asked_about(
    open_tab: OpenTab, world: World
) -> None:
    page = to_make(open_tab())
    page.get_by_label("Set five traits").click()
    page.locator("#name input, #name textarea").fill("otto")
    page.locator("#make").click()
    page.wait_for_selector("#make-told .trouble")
    assert "average person" in page.locator("#make-told").inner_text()
    set_number(page, "#trait-E", 2)
    page.locator("#make").click()
    page.wait_for_selector("#welcome .said")
    first = world.call("GET", "/v1/personas/otto").json()
    assert first["fit"]["sliders"]["E"] == 2
    to_make(page)
    set_number(page, "#trait-E", -2)
    page.locator("#make").click()
    page.wait_for_selector("#replace-made")
    assert "another otto already" in page.locator("#make-told").inner_text()
    assert world.call("GET", "/v1/personas/otto").json()["digest"] == first["digest"]
    # Another name than was asked about is asked about.
    alice = world.call("GET", "/v1/personas/alice").json()["digest"]
    for name in ("alice", "otto"):
        page.locator("#name input, #name textarea").fill(name)
        page.locator("#replace-made").click()
        page.locator("#make-told").get_by_text(f"another {name} already").wait_for()
        assert world.call("GET", "/v1/personas/alice").json()["digest"] == alice
        assert world.call("GET", "/v1/personas/otto").json()["digest"] == first["digest"]
    page.locator("#replace-made").click()
    page.wait_for_function(
        "document.querySelector('#views [aria-selected=true]').innerText == 'Meet'"
    )
    assert world.call("GET", "/v1/personas/otto").json()["digest"] != first["digest"]


def test_a_file_of_answers_or_of_a_persona_is_taken_and_another_is_told_what_it_is(
    open_tab: OpenTab, world: World, tmp_path: Path, smol_personas: tuple[Path, dict[str, Persona]]
) -> None:
    page = to_make(open_tab())
    page.get_by_label("Take a file").click()
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"answers": {"q1": 9}}')
    page.locator("#file input[type=file]").set_input_files(wrong)
    page.wait_for_selector("#file-read .trouble")
    assert "wanted 1 to 5" in page.locator("#file-read").inner_text()
    page.locator("#file").get_by_role("button", name="Clear").click()
    items = [item["id"] for item in world.call("GET", "/v1/questionnaire").json()["data"]]
    right = tmp_path / "paul.csv"
    rows = [
        "item,statement,answer",
        "id,,paul",
        *(f"{name},x,{1 + at % 5}" for at, name in enumerate(items)),
    ]
    right.write_text("\n".join(rows))
    page.locator("#file input[type=file]").set_input_files(right)
    page.wait_for_selector("#file-read .said")
    assert f"{len(items)} answers of paul" in page.locator("#file-read").inner_text()
    page.locator("#make").click()
    page.wait_for_selector("#welcome .said")
    assert world.call("GET", "/v1/personas/paul").json()["fit"]["answered"] == len(items)
    to_make(page)
    page.get_by_label("Take a file").click()
    page.locator("#file").get_by_role("button", name="Clear").click()
    page.locator("#file input[type=file]").set_input_files(smol_personas[0] / "p3.safetensors")
    page.wait_for_selector("#radar svg.heads")
    page.locator("#name input, #name textarea").fill("third")
    page.locator("#make").click()
    page.wait_for_function("document.querySelector('#welcome').innerText.includes('third')")
    assert world.call("GET", "/v1/personas/third").json()["digest"] == smol_personas[1]["p3"].digest


def test_a_key_that_may_not_manage_is_told_so_at_once(open_tab: OpenTab) -> None:
    page = to_make(open_tab("use"))
    assert "may ask personas, not make" in page.locator("#make-notice").inner_text()
    assert page.locator("#make").count() == 0


def test_what_the_tab_has_kept_and_cannot_be_used_is_nothing(open_tab: OpenTab) -> None:
    page = open_tab()
    for kept in ("{", json.dumps({"length": "7", "at": 99, "answers": {"q1": 9, "nothing": 3}})):
        page.evaluate("kept => sessionStorage.setItem('palign.answers', kept)", kept)
        page.reload()
        page.wait_for_selector(".status.there")
        to_make(page)
        wait_for_count(page, 0)


def test_a_server_without_directions_takes_files_of_personas_and_says_so_at_once() -> None:
    def reply(request: httpx.Request) -> httpx.Response:
        missing = request.url.path == "/v1/questionnaire"
        code = "directions_missing" if missing else "persona_invalid"
        return httpx.Response(
            501 if missing else 400, json={"error": {"code": code, "message": "x"}}
        )

    server = Server("http://palign.test")
    server._http = httpx.AsyncClient(base_url=server.url, transport=httpx.MockTransport(reply))
    with gr.Blocks():
        make = Make(server, gr.State(), gr.Textbox())
    changes = in_thread(make.ready("", "", None))
    assert "makes no personas from answers" in changes[make.notice]
    assert (
        changes[make.way]["choices"] == [("Take a file", FILE)] and changes[make.by_file]["visible"]
    )
    assert changes[make.whole]["visible"] and not changes[make.by_answers]["visible"]
