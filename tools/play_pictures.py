"""Pictures of ``palign play`` for the docs: its three views, light and dark, as ``docs/play-VIEW-SCHEME.png``.

make pictures
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).resolve().parent.parent / "docs"
ANSWERS = (5, 5, 4, 2, 4, 5, 2)
"""As many statements are answered on the picture of Make."""
COLOURS = 255
"""Of a picture: an interface has few, and the files stay small."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("no Chromium here: apt-get install --no-install-recommends chromium")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    play = subprocess.Popen(
        [Path(sys.executable).with_name("palign"), "play", "--server", options.server,
         "--api-key", options.api_key, "--port", str(port)]
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, play)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for scheme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": 1200, "height": 800}, color_scheme=scheme
                )
                page = context.new_page()
                page.goto(url)
                page.wait_for_selector(".status.there")
                for view, prepare in (("meet", meet), ("make", make), ("look", look)):
                    prepare(page)
                    page.mouse.move(0, 0)
                    page.wait_for_timeout(700)
                    save(page, options.out / f"play-{view}-{scheme}.png")
            browser.close()
    finally:
        play.terminate()
        play.wait()


def wait_for(url: str, play: subprocess.Popen[bytes]) -> None:
    while play.poll() is None:
        with suppress(httpx.TransportError):
            httpx.get(url)
            return
        time.sleep(0.2)
    sys.exit("palign play ended early")


def meet(page: Page) -> None:
    page.wait_for_selector("#who-2 .token")
    page.get_by_role("button", name="How they answer").click()
    length = page.locator("#longest input[type=number]")
    length.fill("48")
    length.press("Tab")
    page.get_by_role("button", name="How they answer").click()
    page.locator(".idea").first.click()
    page.locator("#ask").click()
    page.wait_for_selector("#stop:enabled")
    page.wait_for_selector("#ask:enabled")
    page.evaluate("document.activeElement.blur()")


def make(page: Page) -> None:
    page.get_by_role("tab", name="Make").click()
    page.wait_for_selector("#answer-1")
    page.evaluate("document.activeElement.blur()")
    for answer in ANSWERS:
        page.keyboard.press(str(answer))
    page.wait_for_function(
        f"document.querySelector('#statement').innerText.includes({json.dumps(f'{len(ANSWERS)} of')})"
    )


def look(page: Page) -> None:
    page.get_by_role("tab", name="Look").click()
    page.locator("#list label").first.click()
    page.wait_for_selector("#card article")
    page.locator("#beside input").fill("bob")
    page.locator("#beside input").press("Enter")
    page.wait_for_selector("#other article")
    page.evaluate("document.activeElement.blur()")


def save(page: Page, path: Path) -> None:
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    shot.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path} ({path.stat().st_size // 1024} KiB)")


if __name__ == "__main__":
    main()
