"""A page of the app on a phone, for browser tests."""

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, expect, sync_playwright
from screenshots import ARGUMENTS, CHROMIUM

import memo.ui


@contextmanager
def on_a_phone(settings, models, timeout) -> Iterator[Page]:
    """The app's page at 390 px, which fails the test on an error in the console."""
    running, problems = memo.ui.launch(settings, prevent_thread_lock=True, models=models), []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = chromium.new_page(viewport={"width": 390, "height": 900}, locale="en-GB", reduced_motion="reduce")
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        page.goto(running.url)
        expect(page.locator("#documents .empty")).to_be_visible(timeout=timeout)
        yield page
        chromium.close()
    running.close()
    assert not problems
