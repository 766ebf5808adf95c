"""Look, in a real browser before a real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page

from tests.personas import SMOLLM2, random_persona
from tests.play.conftest import World, drawn, give_key
from vllm_palign import Persona
from vllm_palign.play.look import card

OpenTab = Callable[..., Page]
HOSTILE = '<img src=http://192.0.2.1/x onerror=alert(1)> of "quotes" & $x$'


def to_look(page: Page) -> Page:
    page.get_by_role("tab", name="Look").click()
    drawn(page, "#list label")
    return page


def listed(page: Page) -> list[str]:
    return page.locator("#list label").all_inner_texts()


def put(world: World, name: str, persona: Persona) -> None:
    assert world.call("PUT", f"/v1/personas/{name}", content=persona.to_bytes()).status_code in (
        200,
        201,
    )


def test_personas_are_paged_and_searched(open_tab: OpenTab, world: World) -> None:
    some = random_persona(5, **SMOLLM2)
    for number in range(22):
        put(world, f"zz-{number:02}", some)
    try:
        page = to_look(open_tab())
        seen = listed(page)
        assert len(seen) == 20 and page.locator("#earlier").is_disabled()
        while page.locator("#later").is_enabled():
            last = listed(page)[-1]
            page.locator("#later").click()
            page.wait_for_function(
                "last => [...document.querySelectorAll('#list label')].at(-1).innerText != last",
                arg=last,
            )
            seen += listed(page)
        known = world.call("GET", "/v1/personas?limit=1000").json()["data"]
        assert [text.split(" ")[0] for text in seen] == [one["id"] for one in known]
        page.locator("#earlier").click()
        page.wait_for_selector("#earlier:disabled")
        assert listed(page) == seen[:20]
        page.locator("#search input, #search textarea").fill("Z-1")
        page.wait_for_function("document.querySelectorAll('#list label').length == 10")
        page.locator("#search input, #search textarea").fill("nowhere")
        page.wait_for_function("document.querySelectorAll('#list label').length == 0")
    finally:
        for number in range(22):
            world.call("DELETE", f"/v1/personas/zz-{number:02}")


def test_a_card_shows_what_the_server_says_and_two_stand_beside_each_other(
    open_tab: OpenTab, world: World
) -> None:
    page = to_look(open_tab("use"))
    page.get_by_label("alice").click()
    page.wait_for_selector("#card article")
    persona = world.call("GET", "/v1/personas/alice").json()
    text = page.locator("#card").inner_text()
    assert "no head map" in text, "a key that may only ask"
    assert persona["digest"] in text and "24 of 270 heads" in text and persona["base_model"] in text
    page.locator("#beside input").fill("bob")
    page.locator("#beside input").press("Enter")
    page.wait_for_selector("#other article")
    assert page.locator("#other h2").inner_text() == "bob"


def test_a_persona_is_replaced_and_deleted_only_after_a_question(
    open_tab: OpenTab, world: World, tmp_path: Path
) -> None:
    put(world, "victim", random_persona(6, **SMOLLM2))
    page = to_look(open_tab())
    page.get_by_label("victim").click()
    page.locator("#delete").click()
    page.wait_for_selector("#sure")
    page.locator("#keep").click()
    page.wait_for_selector("#sure", state="detached")
    assert world.call("GET", "/v1/personas/victim").status_code == 200
    other = random_persona(7, **SMOLLM2)
    (tmp_path / "other.safetensors").write_bytes(other.to_bytes())
    with page.expect_file_chooser() as chooser:
        page.locator("#replace").click()
    chooser.value.set_files(tmp_path / "other.safetensors")
    page.wait_for_selector("#sure")
    page.locator("#do-it").click()
    page.wait_for_function(
        "document.querySelector('#look-told').innerText == 'victim is replaced.'"
    )
    assert world.call("GET", "/v1/personas/victim").json()["digest"] == other.digest
    page.locator("#delete").click()
    page.wait_for_function("document.querySelector('#sure')?.innerText.includes('Delete victim?')")
    page.locator("#do-it").click()
    page.wait_for_function("document.querySelector('#look-told').innerText == 'victim is deleted.'")
    assert world.call("GET", "/v1/personas/victim").status_code == 404
    page.wait_for_function(
        "![...document.querySelectorAll('#list label')].some(l => l.innerText == 'victim')"
    )


def test_another_key_sees_nothing_of_what_the_last_one_saw_and_does_nothing_it_asked(
    open_tab: OpenTab, world: World
) -> None:
    page = to_look(open_tab())
    page.get_by_label("alice").click()
    page.wait_for_selector("#card a.download")
    page.locator("#delete").click()
    page.wait_for_selector("#sure")
    for key in ("nobody's", world.keys["use"]):
        give_key(page, key)
        page.wait_for_selector("#sure", state="detached")
        page.wait_for_selector("#card article", state="detached")
    page.wait_for_selector("#list label")
    assert page.locator("#list input:checked").count() == 0
    assert world.call("GET", "/v1/personas/alice").status_code == 200


def test_a_replacement_from_make_is_the_card_that_is_shown(
    open_tab: OpenTab, world: World, tmp_path: Path
) -> None:
    put(world, "again", random_persona(6, **SMOLLM2))
    other = random_persona(7, **SMOLLM2)
    (tmp_path / "again.safetensors").write_bytes(other.to_bytes())
    try:
        page = to_look(open_tab())
        page.locator("#list label", has_text="again").click()
        page.wait_for_selector("#card article")
        page.get_by_role("tab", name="Make").click()
        page.get_by_label("Take a file").click()
        page.locator("#file input[type=file]").set_input_files(tmp_path / "again.safetensors")
        page.wait_for_selector("#radar svg.heads")
        assert page.locator("#description textarea, #description input").is_disabled()
        page.locator("#name input, #name textarea").fill("again")
        page.locator("#make").click()
        page.locator("#replace-made").click()
        page.wait_for_selector("#welcome .said")
        to_look(page)
        page.locator("#card").get_by_text(other.digest).wait_for()
    finally:
        world.call("DELETE", "/v1/personas/again")


def test_texts_of_a_file_are_shown_and_never_run(open_tab: OpenTab, world: World) -> None:
    """``open_tab`` ends the test if anything of it was loaded or run."""
    persona = random_persona(8, **SMOLLM2, base_model=HOSTILE)
    hostile = Persona(
        **{name: getattr(persona, name) for name in ("name", "layers", "heads", "offsets", "alpha", *SMOLLM2)},
        base_model=HOSTILE, description=HOSTILE,
        fit={"warnings": [HOSTILE], "tool": HOSTILE, "answered": 3, "sliders": {"O": "x"}},
    )  # fmt: skip
    put(world, "hostile", hostile)
    try:
        page = to_look(open_tab())
        page.locator("#list label", has_text="hostile").click()
        page.wait_for_selector("#card article")
        assert page.locator("#card").inner_text().count(HOSTILE) >= 3
        assert page.locator("#card img").count() == 0
    finally:
        world.call("DELETE", "/v1/personas/hostile")


def test_a_card_of_a_file_that_says_other_things_than_palign_fit_is_shown() -> None:
    persona = {
        "id": "odd", "base_model": "m", "created": 0, "method": "pas", "steered_heads": 1, "num_layers": 1,
        "num_heads": 1, "alpha": 1.0, "bytes": 10, "digest": "0" * 64,
    }  # fmt: skip
    for fit in ({"warnings": 5}, {"sliders": {"O": None, "C": "x"}}, {"sliders": []}, {"tool": 3}):
        assert "odd" in card({**persona, "fit": fit}, None)


def test_who_may_manage_sees_the_head_map_and_downloads_the_very_bytes(
    open_tab: OpenTab, smol_personas: tuple[Path, dict[str, Persona]]
) -> None:
    page = to_look(open_tab())
    page.get_by_label("alice").click()
    page.wait_for_selector("#card svg.heads")
    assert page.locator("#card .cell").count() == 24
    with page.expect_download() as download:
        page.locator("#card a.download").click()
    assert download.value.suggested_filename == "alice.safetensors"
    assert (
        download.value.path().read_bytes() == (smol_personas[0] / "alice.safetensors").read_bytes()
    )
