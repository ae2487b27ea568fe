"""The tab Results in a real browser: filtered, one's own questions evaluated, nothing wider than a phone."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SMALL
from phone import on_a_phone
from playwright.sync_api import expect
from screenshots import CHROMIUM

pytestmark = [
    pytest.mark.browser,
    pytest.mark.models,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs Chromium"),
]
LONG = 90_000  # milliseconds
FACT = "The boiler house is painted blue. Its heat returns on 3 November at noon. Mr Hallam keeps the key."
CSV = "question;answers\nWhen does the heat return?;3 November\nWho keeps the key?;Mr Hallam|Hallam\n"


@pytest.fixture
def page(models, tmp_path):
    """The app's page at 390 px, which fails the test on an error in the console."""
    settings = replace(SMALL, data=tmp_path / "sessions", port=0)
    with on_a_phone(settings, models, LONG) as page:
        yield page


def file(name, text):
    return {"name": name, "mimeType": "text/plain", "buffer": text.encode()}


def test_results_are_filtered_and_own_questions_evaluated(page):
    page.locator("#files input[type=file]").set_input_files(file("heat.txt", FACT))
    expect(page.locator(".document")).to_have_class(re.compile("ready"), timeout=LONG)
    page.evaluate("[...document.querySelectorAll('[role=tab]')].find((t) => t.textContent.includes('Results')).click()")
    expect(page.locator("#results-tables table").first).to_be_visible(timeout=LONG)
    expect(page.locator("#results-plot-0 .js-plotly-plot")).to_be_visible(timeout=LONG)
    expect(page.locator("#results-commands")).to_contain_text("hotpotqa")
    page.locator("#results-sets input").fill("squad2")
    page.keyboard.press("Enter")
    expect(page.locator("#results-commands")).not_to_contain_text("hotpotqa", timeout=LONG)
    page.locator("#results-section input").click()
    page.get_by_role("option", name="All figures").click()
    expect(page.locator("#results-plot-20 .js-plotly-plot")).to_be_visible(timeout=LONG)
    expect(page.locator("#results-tables table")).to_have_count(0)
    page.locator("#testing-file input[type=file]").set_input_files(file("questions.csv", CSV))
    expect(page.locator("#testing-status")).to_contain_text("2 questions are ready", timeout=LONG)
    page.locator("#testing-start").click()
    expect(page.locator("#testing-status")).to_contain_text("2 of 2 questions answered.", timeout=LONG)
    expect(page.locator("#testing-rows tbody tr")).to_have_count(6)  # two strategies, and their means
    with page.expect_download() as got:
        page.locator("#testing-csv").click()
    assert "Who keeps the key?" in got.value.path().read_text(encoding="utf-8")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
