"""The app in a real browser: from dropping a file to deleting it, on a phone, in the dark, in Korean, by keyboard."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pypdf
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import SMALL
from playwright.sync_api import Page, expect, sync_playwright
from screenshots import ARGUMENTS, CHROMIUM

import memo.ui
from memo.decoder import first_layers
from memo.mixing import Mixing
from memo.train.recipe import Studying

pytestmark = [
    pytest.mark.browser,
    pytest.mark.models,
    pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs Chromium"),
]
LONG = 90_000  # milliseconds for what a model does on two busy cores
FACT = "The boiler house is painted blue. Its heat returns on 3 November at noon. Mr Hallam keeps the key."
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script> The <b>vault</b>. ${1+1} {{1+1}}'
QUESTION = "When does the heat return?"


@pytest.fixture(scope="module")
def app(models, tmp_path_factory):
    settings = replace(SMALL, data=tmp_path_factory.mktemp("browser") / "sessions", port=0, memory_decoder="none")
    running = memo.ui.launch(settings, prevent_thread_lock=True, models=models)
    yield running
    running.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(app, browser):
    """A function: opens the app in a window of its own, and fails the test on an error in the page's script."""
    contexts, problems = [], []

    def make(path="", width=1280, height=900, locale="en-GB", **options):
        context = browser.new_context(
            viewport={"width": width, "height": height}, locale=locale, reduced_motion="reduce", **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.extend(re.findall(r"^https?://(?!127\.0\.0\.1).*", request.url)))
        page.goto(app.url + path)
        expect(page.locator("#documents .empty")).to_be_visible(timeout=LONG)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not problems


def put(page: Page, name: str, text: str) -> None:
    page.locator("#files input[type=file]").set_input_files(
        {"name": name, "mimeType": "text/plain", "buffer": text.encode()}
    )
    expect(page.locator(".document", has_text=name)).to_have_class(re.compile("ready|failed"), timeout=LONG)


def ask(page: Page, question: str = QUESTION, only: tuple[str, ...] = ()) -> None:
    """Asks, by these strategies alone if any are named, and waits for the end."""
    if only:
        choose(page, only)
    page.locator("#question textarea").fill(question)
    page.locator("#ask").click()
    expect(page.locator("#stop")).to_be_enabled()
    expect(page.locator("#stop")).to_be_disabled(timeout=LONG)


def choose(page: Page, names: tuple[str, ...]) -> None:
    if not page.locator("#strategies").is_visible():
        page.locator("#options button").first.click()
    expect(page.locator("#strategies")).to_be_visible()
    for box in page.locator("#strategies label").all():
        box.locator("input").set_checked(box.inner_text().strip() in names)


def test_from_a_dropped_pdf_to_cited_answers_and_back_to_nothing(open_page, tmp_path):
    page = open_page()
    expect(page.locator("#status")).to_contain_text("Put in a document first", timeout=LONG)
    writer = pypdf.PdfWriter()
    for sheet in pypdf.PdfReader(Path(__file__).parent.parent / "assets/examples/kettlewick-manual.pdf").pages[:2]:
        writer.add_page(sheet)
    writer.write(tmp_path / "manual.pdf")
    page.locator("#files input[type=file]").set_input_files(tmp_path / "manual.pdf")
    expect(page.locator(".document.ready")).to_contain_text("manual.pdf", timeout=LONG)
    expect(page.locator(".document .figures")).to_contain_text(re.compile(r"[\d,]+ tokens → [\d,]+ memory slots"))
    expect(page.locator(".document .figures")).to_contain_text("the full cache would take")
    expect(page.locator("#status")).to_contain_text("Ready for your question")

    ask(page, "Which machine is this manual for?")
    for name in ("memorag", "rag", "full_context", "closed_book"):
        expect(page.locator(f"#answer-{name} .facts")).to_contain_text("tokens read")
    assert page.locator(".clue:visible").count() >= 1
    expect(page.locator(".clue:visible .kind").first).not_to_be_empty()
    expect(page.locator(".set:visible .passage").first).to_contain_text("page 1")
    page.locator("[data-set=rag]").click()
    expect(page.locator(".set[data-of=rag]")).to_be_visible()
    expect(page.locator(".set[data-of=memorag]")).to_be_hidden()
    expect(page.locator(".set:visible .found-by").first).to_contain_text("your question")
    expect(page.locator("#history li")).to_contain_text("Which machine is this manual for?")

    page.get_by_role("button", name="Delete manual.pdf").click()
    expect(page.locator(".document")).to_have_count(0)
    expect(page.locator("#delete-all")).to_be_disabled()
    page.locator("#ask").click()
    expect(page.get_by_text("No document is ready yet")).to_be_visible()


def test_a_document_is_studied_on_request(open_page, monkeypatch):
    plan = Studying(steps=2, part=64, span=16, stretches=1, questions=1, answers=1, asked=6, answered=6)
    monkeypatch.setattr("memo.ui.visits.Studying", lambda: plan)
    page = open_page()
    put(page, "heat.txt", FACT)
    page.get_by_role("button", name="Train the memory of heat.txt").click()
    expect(page.locator(".document .figures")).to_contain_text("Studied", timeout=LONG)
    expect(page.locator(".document")).to_have_class(re.compile("ready"))
    page.get_by_role("button", name="Delete heat.txt").click()
    expect(page.locator(".document")).to_have_count(0)


def test_a_citation_leads_to_the_exact_words(open_page):
    page = open_page()
    put(page, "heat.txt", "Minutes of the council. Nobody came.\n\n" * 12 + FACT)
    ask(page, QUESTION, only=("MemoRAG", "RAG"))
    cite = page.locator("#answer-rag .cite").first
    expect(cite).to_have_attribute("aria-label", re.compile("Citation 1|Citation 2"))
    cite.click()
    mark = page.locator("mark.active:visible")
    expect(mark.first).to_be_focused()
    expect(mark.first).to_be_in_viewport()
    assert "".join(mark.all_inner_texts()) == "Its heat returns on 3 November at noon."
    expect(page.locator("[data-set=rag]")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Back to the answer").click()
    expect(cite).to_be_focused()


def test_clues_can_be_reworded_switched_off_and_added(open_page):
    page = open_page()
    put(page, "heat.txt", FACT)
    ask(page, QUESTION, only=("MemoRAG", "RAG"))
    first = page.locator(".clue:visible").first
    first.locator("textarea").fill("who keeps the key")
    for other in page.locator(".clue:visible").all()[1:]:
        other.locator("input[type=checkbox]").uncheck()
    page.locator("#own-clue textarea").fill("the blue boiler house")
    rag = page.locator("#answer-rag .answer").inner_text()
    page.locator("#again").click()
    expect(page.locator("#stop")).to_be_disabled(timeout=LONG)
    found_by = page.locator(".set[data-of=memorag] .found-by").first
    expect(found_by).to_contain_text("who keeps the key", timeout=LONG)
    expect(found_by).to_contain_text("the blue boiler house")
    expect(first.locator("textarea")).to_have_value("who keeps the key")
    assert page.locator("#answer-rag .answer").inner_text() == rag
    expect(page.locator("#history li")).to_have_count(1)


def test_one_answer_stops_and_the_others_go_on_then_all_stop(open_page):
    page = open_page()
    put(page, "long.txt", "".join(f"Item {i} of the list is made of oak number {i}. " for i in range(250)))
    choose(page, ("RAG", "Full context", "Closed book"))
    page.locator("#question textarea").fill("What is item 9 made of?")
    page.locator("#ask").click()
    page.locator("#answer-full_context").get_by_role("button", name="Stop this answer").click()
    expect(page.locator("#answer-full_context .facts")).to_contain_text("stopped", timeout=LONG)
    expect(page.locator("#answer-rag .facts")).to_contain_text("tokens read", timeout=LONG)
    expect(page.locator("#answer-rag .facts .stopped")).to_have_count(0)
    expect(page.locator("#stop")).to_be_disabled(timeout=LONG)
    page.locator("#ask").click()
    expect(page.locator("#stop")).to_be_enabled()
    page.locator("#stop").click()
    expect(page.locator("#stop")).to_be_disabled(timeout=LONG)
    expect(page.locator("#answer-full_context .facts .stopped")).to_be_visible()


def test_a_hostile_document_question_and_clue_stay_text(open_page):
    page = open_page()
    put(page, "evil.html.txt", HOSTILE)
    ask(page, HOSTILE + "?", only=("MemoRAG", "RAG"))
    page.locator("#own-clue textarea").fill(HOSTILE)
    page.locator("#again").click()
    expect(page.locator(".set[data-of=memorag] .found-by").first).to_contain_text("onerror", timeout=LONG)
    expect(page.locator("#stop")).to_be_disabled(timeout=LONG)
    expect(page.locator(".set:visible .passage .text").first).to_contain_text("<img src=x")
    expect(page.locator("#history .asked")).to_contain_text("<script>")
    expect(page.locator("#history .asked")).to_contain_text("${1+1} {{1+1}}")
    assert page.evaluate("window.hacked") is None
    assert page.locator(".passage img, .passage script, #history img, .answer img").count() == 0


def test_a_wrong_file_is_told_on_its_own_card(open_page):
    page = open_page()
    page.locator("#files input[type=file]").set_input_files(
        [
            {"name": "photo.png", "mimeType": "image/png", "buffer": b"\x89PNG...."},
            {"name": "heat.txt", "mimeType": "text/plain", "buffer": FACT.encode()},
        ]
    )
    expect(page.locator(".document.failed")).to_contain_text("photo.png is of a kind that is not read")
    expect(page.locator(".document.ready")).to_contain_text("heat.txt", timeout=LONG)


def test_a_conversation_is_exported_and_forgotten(open_page):
    page = open_page()
    put(page, "heat.txt", FACT)
    ask(page, QUESTION, only=("RAG",))
    with page.expect_download() as markdown:
        page.locator("#export-md").click()
    assert markdown.value.suggested_filename == "memo-conversation.md"
    assert QUESTION in Path(markdown.value.path()).read_text(encoding="utf-8")
    with page.expect_download() as exported:
        page.locator("#export-json").click()
    turns = json.loads(Path(exported.value.path()).read_text(encoding="utf-8"))["turns"]
    assert turns[0]["question"] == QUESTION and turns[0]["answers"]["rag"]["passages"]
    page.locator("#new-conversation").click()
    expect(page.locator("#history li")).to_have_count(0)
    expect(page.locator(".answer:visible")).to_have_count(0)
    expect(page.locator("#export-json")).to_be_disabled()
    expect(page.locator(".document.ready")).to_have_count(1)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_scrolls_only_downwards_and_everything_can_be_read(open_page, theme):
    page = open_page(f"?__theme={theme}", width=390, height=800, has_touch=True)
    put(page, "a-rather-long-name-without-any-space-in-it-" * 2 + ".txt", FACT + " " + "x" * 300)
    ask(page, "w" * 120 + " When does the heat return?", only=("MemoRAG", "RAG"))
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for locator in (page.locator(".answer:visible"), page.locator(".passage:visible"), page.locator(".document")):
        box = locator.first.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    tops = [box.bounding_box()["y"] for box in page.locator(".answer:visible").all()]
    assert len(set(tops)) == 2  # one below the other
    assert page.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
    assert not page.evaluate(LOW_CONTRAST)


def give_a_decoder(app):
    """The visitor whose page was opened last gets a Memory Decoder: the language model's first layers."""
    session = list(app.sessions._sessions.values())[-1]
    reader = session.rag.models.generator().model
    session.rag.mixing = Mixing(reader, first_layers(reader.model, 6).to(reader.model.dtype).eval(), 0.5)


def test_a_text_is_read_token_by_token_and_mixed_anew(open_page, app):
    page = open_page()
    page.get_by_role("tab", name="Memory Decoder").click()
    page.locator("#trace-read").click()
    expect(page.locator("#trace-status")).to_contain_text("no Memory Decoder here yet")
    give_a_decoder(app)
    page.get_by_role("tab", name="Ask").click()
    page.get_by_role("tab", name="Memory Decoder").click()
    expect(page.locator("#decoder-which")).to_contain_text("Your own decoder")
    page.locator("#trace-text textarea").fill(HOSTILE)
    page.locator("#trace-read").click()
    expect(page.locator(".token").first).to_be_visible(timeout=LONG)
    assert page.locator(".tokens").inner_text().replace("·", " ") == HOSTILE
    assert page.evaluate("window.hacked") is None and page.locator(".tokens img, .tokens script").count() == 0
    token = page.locator(".token").nth(6)
    token.click()
    expect(token).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#trace-token .looked-at")).to_have_text(token.inner_text())
    expect(page.locator("#trace-bars .bars .point").first).to_be_visible(timeout=LONG)
    expect(page.locator("#trace-near")).to_contain_text("datastore that this decoder was made from is not here")
    mixed, alone = (page.locator(f"#trace-sums .{name} dd").inner_text() for name in ("mixed", "llm"))
    bars = page.locator("#trace-bars .bartext").all_text_contents()
    assert mixed != alone and bars
    page.locator("#trace-alpha input[type=number]").fill("0")
    page.locator("#trace-alpha input[type=number]").press("Enter")
    expect(page.locator("#trace-sums .mixed dd")).to_have_text(alone)
    expect(page.locator("#trace-token .times")).to_contain_text("1.00 times")
    now = "[...document.querySelectorAll('#trace-bars .bartext')].map((text) => text.textContent)"
    page.wait_for_function(f"old => {now}.join() != old.join()", arg=bars)
    assert page.locator(".token.raised, .token.lowered").count() == 0
    page.locator("#trace-text textarea").fill("The mill stood")
    page.locator("#trace-write").click()
    expect(page.locator(".token.written").nth(3)).to_be_visible(timeout=LONG)
    page.locator("#trace-stop").click()
    expect(page.locator("#trace-stop")).to_be_disabled(timeout=LONG)
    page.get_by_role("tab", name="Ask").click()
    page.locator("#options button").first.click()
    expect(page.locator("#mix input")).to_be_enabled()
    page.locator("#mix input").check()
    expect(page.locator("#status")).to_contain_text("Put in a document first")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_decoders_tab_on_a_phone(open_page, app, theme):
    page = open_page(f"?__theme={theme}", width=390, height=800, has_touch=True)
    give_a_decoder(app)
    page.get_by_role("tab", name="Memory Decoder").click()
    page.locator("#trace-text textarea").fill("The mill stood at the river bend. " + "w" * 120)
    page.locator("#trace-read").click()
    expect(page.locator(".token").first).to_be_visible(timeout=LONG)
    page.locator(".token").nth(4).click()
    expect(page.locator("#trace-bars .bars .point").first).to_be_visible(timeout=LONG)
    page.locator(".numbers summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not page.evaluate(LOW_CONTRAST)


def test_korean_from_the_browsers_language(open_page):
    page = open_page(locale="ko-KR")
    expect(page.locator("#documents-panel h2")).to_contain_text("문서")
    expect(page.locator("#ask")).to_have_text("질문하기")
    expect(page.locator("#privacy")).to_contain_text("이 페이지를 운영하는 컴퓨터에 머뭅니다")
    put(page, "empty.txt", " ")
    expect(page.locator(".document.failed .why")).to_have_text("empty.txt에 글이 없습니다. 글이 있는 파일을 고르세요.")
    page.locator("#ask").click()
    expect(page.get_by_text("먼저 질문을 입력하세요.")).to_be_visible()
    page.get_by_role("tab", name="메모리 디코더").click()
    expect(page.locator("#decoder-which")).to_contain_text("아직 메모리 디코더가 없습니다")
    page.locator("#train").click()
    expect(page.locator("#training")).to_contain_text("배울 글이 너무 적습니다")


def test_a_refused_question_leaves_the_rest_of_the_page_as_it_is(open_page):
    page = open_page()
    labels = page.locator("button, h2, label").all_text_contents()
    page.locator("#ask").click()
    expect(page.locator("#status")).to_contain_text("question")
    page.locator("#question textarea").fill("Who?")
    page.locator("#ask").click()
    expect(page.locator("#status")).to_contain_text("document")
    page.locator("#question textarea").fill("")
    page.locator("#ask").click()
    expect(page.locator("#status")).to_contain_text("question")
    assert page.locator("button, h2, label").all_text_contents() == labels


def test_by_keyboard_alone(open_page):
    page = open_page()

    def tab_to(selector):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"focus on {selector} cannot be seen"
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#files button")
    tab_to(".examples button")
    put(page, "heat.txt", FACT)
    tab_to("#documents .delete")
    tab_to("#question textarea")
    page.keyboard.type(QUESTION)
    tab_to("#ask")
    tab_to("#options button")
    page.keyboard.press("Enter")
    expect(page.locator("#strategies input").first).to_be_checked()
    tab_to("#strategies input")
    expect(page.locator("#strategies input").first).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#strategies input").first).not_to_be_checked()
    page.keyboard.press("Space")
    page.locator("#question textarea").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#stop")).to_be_enabled()
    tab_to("#stop")
    expect(page.locator("#stop")).to_be_disabled(timeout=LONG)
    page.locator("#question textarea").focus()
    tab_to(".clue input[type=checkbox]")
    tab_to(".clue textarea")
    tab_to("#again")
    tab_to("[data-set]")
    tab_to("button.cite")
    page.keyboard.press("Enter")
    expect(page.locator("mark.active").first).to_be_focused()
    tab_to("#export-md")


def test_reloading_the_page_leaves_nothing_behind(open_page, app):
    page = open_page()
    put(page, "heat.txt", FACT)
    page.reload()
    expect(page.locator("#documents .empty")).to_be_visible(timeout=LONG)
    page.close()
    expect_empty(app.sessions.settings.data)


def expect_empty(folder: Path) -> None:
    """Waits until no visitor's folder is left but those of pages that are open."""
    import time

    until = time.monotonic() + 20
    while time.monotonic() < until:
        if not [p for p in folder.glob("*/documents/*/text.txt") if "heat" in p.read_text(encoding="utf-8")]:
            return
        time.sleep(0.05)
    raise AssertionError("a document is left")


# Texts whose contrast with what is behind them is below 4.5 : 1; disabled controls need not have it.
LOW_CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] / 255 + below[i] * (1 - top[3] / 255));
  const light = (c) => c.map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(rgba(getComputedStyle(e).backgroundColor));
    return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const low = [];
  const walker = document.createTreeWalker(document.querySelector('main') || document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !e.checkVisibility() || e.closest(':disabled, [aria-hidden], style'))
      continue;
    const back = behind(e), front = over(rgba(getComputedStyle(e).color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${text.slice(0, 40)}`);
  }
  return [...new Set(low)];
}"""


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 390)])
def test_nothing_keeps_anybody_out(open_page, scheme, width):
    """axe finds nothing serious: names of controls, contrast, order of headings, before and after an answer."""
    page = open_page(f"?__theme={scheme}", width=width, color_scheme=scheme)

    def check(where: str) -> None:
        found = Axe().run(page).response
        serious = [(one["id"], node["html"]) for one in found["violations"] for node in one["nodes"]
                   if one["impact"] in ("serious", "critical")
                   and 'aria-label="Empty value"' not in node["html"]]  # Gradio's, while a figure is on its way
        assert len(found["passes"]) > 15 and not serious, (where, serious)

    put(page, "boiler.txt", FACT)
    check("before a question")
    ask(page, only=("MemoRAG", "RAG"))
    check("after an answer")
    for tab in page.get_by_role("tab").all()[1:]:
        tab.click()
        page.wait_for_timeout(500)  # the tab's own drawing
        check(tab.inner_text())


@pytest.mark.parametrize("locale, width", [("en-GB", 1280), ("ko-KR", 390)])
def test_the_tour_leads_through_the_page_and_ends(open_page, locale, width):
    page = open_page(locale=locale, width=width)
    page.locator("#tour").click()
    card = page.locator("#tour-card")
    count = page.locator("#tour-steps li[data-at]").count()
    assert count == 8
    seen = set()
    for step in range(count):
        expect(card).to_contain_text(f"{step + 1} / {count}")
        expect(page.locator(".toured")).to_have_count(1)
        seen.add(card.locator("p").inner_text())
        if step < count - 1:
            page.keyboard.press("Enter")  # the button has the focus
    assert len(seen) == count and all(seen)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.keyboard.press("Escape")
    expect(card).to_be_hidden()
    expect(page.locator(".toured")).to_have_count(0)
    expect(page.locator("#tour")).to_be_focused()
