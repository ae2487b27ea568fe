"""Takes the pictures in assets/screenshots: `python tests/screenshots.py [question]`.

In: the app with the embedded models, which this starts, and the example Harrowmere. Out: four PNG files of the page
after one question, light and dark, wide and narrow. Run by hand.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from memo.settings import Settings
from memo.ui import launch

QUESTION = "How many acres does the mere cover today?"
FOLDER = Path(__file__).parent.parent / "assets" / "screenshots"
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--no-default-browser-check",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]  # fmt: skip


def use(page: Page, url: str, question: str) -> None:
    """Puts the example in, asks, waits for all answers, follows a citation."""
    page.goto(url)
    page.get_by_role("button", name="Harrowmere: A Town and Its Water").click()
    expect(page.locator("#documents .document.ready")).to_be_visible(timeout=240_000)
    page.locator("#question textarea").fill(question)
    page.locator("#ask").click()
    expect(page.locator("#history .conversation li")).to_have_count(1, timeout=240_000)
    for cite in page.locator(".cite").all()[:1]:
        cite.click()
    page.mouse.move(0, 0)


def main() -> None:
    question = " ".join(sys.argv[1:]) or QUESTION
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        app = launch(Settings(data=Path(data) / "sessions", port=0), prevent_thread_lock=True)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1280, "height": 900}, locale="en-GB", reduced_motion="reduce")
            use(page, f"{app.url}?__theme={theme}", question)
            for width in (1280, 390):
                page.set_viewport_size({"width": width, "height": 900})
                page.wait_for_function(f"window.innerWidth == {width}")
                path = FOLDER / f"ask-{width}-{theme}.png"
                page.screenshot(path=path, full_page=True)
                Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
            page.close()
        browser.close()
        app.close()


if __name__ == "__main__":
    main()
