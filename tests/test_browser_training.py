"""The tab Training in a real browser with tiny models: trained, stopped, compared, kept, thrown away, on a phone."""

import re
from pathlib import Path

import pytest
import tiny
from axe_playwright_python.sync_playwright import Axe
from conftest import TINY, counting_words
from phone import on_a_phone
from playwright.sync_api import expect
from screenshots import CHROMIUM

from memo.ui import training_html

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs Chromium"),
]
LONG = 90_000  # milliseconds
HOSTILE = '<img src=x onerror="window.hacked=1"> '
SHIPPED = '[{"stage": "sft", "plan": {"steps": 65, "batch": 32, "learning_rate": 0.0007}, "tokens": 7049216, "log": [' \
          '{"step": 2, "loss": 3.5, "span": 2.2}, {"step": 65, "loss": 2.7, "span": 2.1}]}]'  # fmt: skip


@pytest.fixture
def page(settings_for, tiny_folder, tmp_path, monkeypatch):
    """The app's page at 390 px, which fails the test on an error in the console."""
    (tmp_path / "training.json").write_text(SHIPPED)
    monkeypatch.setattr(training_html, "trained_weights", lambda settings: tmp_path)
    settings = settings_for(memory_model=str(tiny_folder), port=0, **TINY)
    with on_a_phone(settings, counting_words(settings), LONG) as page:
        yield page


def open_tab(page, name):
    page.evaluate(
        "name => [...document.querySelectorAll('[role=tab]')].find((t) => t.textContent.trim() == name).click()", name
    )


def test_weights_are_trained_compared_kept_and_thrown_away(page):
    text = (HOSTILE + tiny.TEXT) * 4
    file = {"name": "mill.txt", "mimeType": "text/plain", "buffer": text.encode()}
    page.locator("#files input[type=file]").set_input_files(file)
    expect(page.locator(".document")).to_have_class(re.compile("ready"), timeout=LONG)
    open_tab(page, "Training")
    status = page.locator("#weights-status")
    expect(status).to_contain_text("Ready to train", timeout=LONG)
    expect(page.locator("#weights-shipped-note")).to_contain_text("No log of this stage")
    page.locator("#weights-steps input[type=number]").fill("10")
    page.locator("#weights-start").click()
    expect(page.locator("#weights-curve .js-plotly-plot")).to_be_visible(timeout=LONG)
    expect(status).to_contain_text("training is done", timeout=LONG)
    expect(page.locator("#weights-outcome")).to_contain_text(re.compile(r"Held-out loss: [\d.]+ before, [\d.]+ after"))
    page.locator("#weights-typed textarea").fill("Who bought the mill? | Anna Okafor\nWhat is <b>bold</b>?")
    page.locator("#weights-compare").click()
    expect(page.locator("#weights-table tbody tr")).to_have_count(6, timeout=LONG)  # two questions, and the means
    expect(page.locator("#weights-table")).to_contain_text("What is <b>bold</b>?")
    expect(page.locator("#weights-stop")).to_be_disabled(timeout=LONG)
    with page.expect_download() as got:
        page.locator("#weights-download").click()
    assert got.value.suggested_filename == "memo-weights.safetensors" and got.value.path().stat().st_size > 10_000
    page.locator("#weights-keep").click()
    expect(status).to_contain_text("with your own weights", timeout=LONG)
    page.locator("#weights-drop").click()
    expect(status).to_contain_text("Ready to train", timeout=LONG)
    expect(page.locator("#weights-table table")).to_have_count(0)
    page.get_by_label("SFT on lessons").check()
    expect(page.locator("#weights-shipped .js-plotly-plot")).to_be_visible(timeout=LONG)
    expect(page.locator("#weights-brought")).to_contain_text("Without a file")
    page.get_by_label("Pre-training", exact=True).check()
    page.locator("#weights-steps input[type=number]").fill("400")
    page.locator("#weights-start").click()
    expect(status).to_contain_text(re.compile(r"Training: step \d+ of 400"), timeout=LONG)
    expect(page.locator("#weights-start")).to_be_disabled()
    page.locator("#weights-stop").click()
    expect(status).to_contain_text("training is done", timeout=LONG)
    expect(page.locator("#weights-keep")).to_be_enabled()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("window.hacked") is None
    found = [v for v in Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert not [(v["id"], [node["target"] for node in v["nodes"]]) for v in found]
