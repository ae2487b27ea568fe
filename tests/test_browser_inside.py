"""The tab Inside the memory in a real browser: slots, clues and the heat map lead to each other; on a phone too."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import expect
from screenshots import CHROMIUM
from test_browser import FACT, HOSTILE, LONG, LOW_CONTRAST, QUESTION, app, browser, open_page, put  # noqa: F401 (fixtures)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.models,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs Chromium"),
]
TEXT = f"{FACT} {HOSTILE} The mill stood at the river bend, and each winter the river froze. " * 3


@pytest.fixture
def inside(open_page):  # noqa: F811
    """A function: opens the tab on a document; the test fails on an error in the console."""
    problems = []

    def make(*args, text=TEXT, **options):
        page = open_page(*args, **options)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        if text:
            put(page, "heat.txt", text)
        page.locator("#tabs [role=tab]").nth(2).click()
        return page

    yield make
    assert not problems


def recall(page):
    page.locator("#inside-question textarea").fill(QUESTION)
    page.locator("#inside-recall").click()
    expect(page.locator(".recalled .token").first).to_be_visible(timeout=LONG)
    expect(page.locator("#inside-map .js-plotly-plot")).to_be_visible(timeout=LONG)


def click_the_map(page, across, down):
    plot = page.locator("#inside-map .nsewdrag").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
    page.wait_for_timeout(200)  # plotly looks at most so often where the mouse is
    page.mouse.down()
    page.mouse.up()


def test_text_clues_and_heat_map_lead_to_each_other(inside):
    page = inside()
    expect(page.locator("#inside-text .figures")).to_contain_text(re.compile(r"[\d,]+ tokens → [\d,]+ memory slots"))
    expect(page.locator(".slots")).to_contain_text("<script>")
    assert page.evaluate("window.hacked") is None and page.locator(".slots img, .slots script").count() == 0
    page.locator(".slots .at").nth(4).click()
    expect(page.locator(".chosen-slot")).to_contain_text("Recall clues to see which layers look here")
    expect(page.locator(".stretch.chosen")).to_have_count(1)
    recall(page)
    token = page.locator(".recalled .token:enabled").nth(2)
    token.click()
    expect(token).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".chosen-slot .layers li")).to_have_count(5)
    before = page.locator(".chosen-slot .where").inner_text()
    expect(page.locator("#inside-map .shapelayer path")).to_have_count(1)
    click_the_map(page, 0.7, 0.4)
    expect(page.locator(".chosen-slot .where")).not_to_have_text(before)
    expect(page.locator(".stretch.chosen")).to_be_in_viewport()
    chosen = page.locator(".stretch.chosen")
    before = chosen.get_attribute("data-number")
    click_the_map(page, 0.3, 0.6)  # once more: the figure was drawn anew
    expect(chosen).not_to_have_attribute("data-number", before)
    page.locator(".strongest .place").first.click()
    number = page.locator(".strongest .place").first.get_attribute("data-number")
    expect(chosen).to_have_attribute("data-number", number)


def test_losses_and_a_part_that_is_recalled(inside):
    page = inside()
    page.locator("#inside-measure").click()
    expect(page.locator("#inside-losses .scatterlayer .trace")).to_have_count(3, timeout=LONG)
    expect(page.locator("#inside-losses-note")).to_contain_text("Lower is better")
    expect(page.locator("#inside-stop")).to_be_disabled(timeout=LONG)
    page.locator("#inside-remember").click()
    expect(page.locator("#inside-stop")).to_be_disabled(timeout=LONG)
    expect(page.locator("#inside-page")).to_contain_text("recalled words are the text’s", timeout=LONG)
    expect(page.locator("#inside-page .whole").nth(1)).to_contain_text("painted blue")
    assert page.evaluate("window.hacked") is None


def test_parts_by_keyboard_and_an_empty_tab_in_korean(inside):
    page = inside(text="", locale="ko-KR")
    expect(page.locator("#inside-text")).to_contain_text("아직 들여다볼 기억이 없습니다")
    page = inside(text=FACT * 30)
    page.locator(".parts select").select_option("1")
    expect(page.locator(".parts select")).to_have_value("1")
    expect(page.locator('.parts option[value="1"][selected]')).to_have_count(1)  # drawn anew: the focus would be lost
    page.locator(".parts button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".parts select")).to_have_value("0")
    page.locator(".slots .at").nth(2).focus()
    page.keyboard.press("Enter")
    expect(page.locator(".slots .at").nth(2)).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_inside_the_memory_on_a_phone(inside, theme):
    page = inside(f"?__theme={theme}", width=390, height=800, has_touch=True, text=TEXT + "w" * 150)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    recall(page)
    page.locator(".recalled .token:enabled").nth(1).tap()
    page.locator(".slots .at").nth(3).tap()
    expect(page.locator(".chosen-slot .layers li").first).to_be_visible()
    page.locator("#inside-remember").click()
    expect(page.locator("#inside-page .whole").first).to_be_visible(timeout=LONG)
    expect(page.locator("#inside-stop")).to_be_disabled(timeout=LONG)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for panel in page.locator("#tabs .column[id^=inside]").all():
        box = panel.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert not page.evaluate(LOW_CONTRAST)
