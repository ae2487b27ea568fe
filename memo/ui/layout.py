"""The page's components: in the tab Ask documents, question, clues, passages, answers, conversation; the other tabs.

In: settings and examples. Out: `Page`, whose fields the handlers in `memo.ui.ask` read and write.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gradio as gr

from memo.answers import DEFAULT_COMPARISON, STRATEGIES
from memo.clues import KINDS, LINES
from memo.names import NAMES
from memo.settings import Settings
from memo.ui.decoder_layout import DecoderPage, decoder_page
from memo.ui.decoding import ALPHA
from memo.ui.inside_layout import InsidePage, inside_page
from memo.ui.results_layout import ResultsPage, results_page
from memo.ui.texts import ASSETS, LANGUAGES, table
from memo.ui.training_layout import TrainingPage, training_page

CLUES = LINES * len(KINDS) + NAMES  # rows for clues
CHIPS = 3  # questions suggested
RATIOS = (4, 8, 16)
i18n = gr.I18n(**{language: table(language) for language in LANGUAGES})

# What is told to the server: which document to delete or to study. The rest of the page's own behaviour is in page.js.
ON_DOCUMENTS = """
element.addEventListener('click', (event) => {
  const {delete: gone, study} = event.target.closest('button')?.dataset ?? {};
  if (gone || study) trigger('click', {delete: gone, study});
});
"""
ON_PASSAGES = "window.memoPassages.mount(element, watch);"


@dataclass(frozen=True)
class Example:
    """A document that comes with the project, and questions about it."""

    title: str
    language: str
    path: Path
    questions: tuple[str, ...]


@cache
def examples() -> tuple[Example, ...]:
    """The documents in assets/examples that have questions."""
    found = []
    for path in sorted((ASSETS / "examples").glob("*.questions.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        questions = tuple(item["question"] for item in about["questions"][:CHIPS])
        found.append(Example(about["title"], about["language"], path.with_name(about["document"]), questions))
    return tuple(sorted(found, key=lambda example: LANGUAGES.index(example.language)))


@dataclass
class ClueRow:
    """One clue: whether it is used, its text, where it came from."""

    row: gr.Row
    use: gr.Checkbox
    text: gr.Textbox
    origin: gr.HTML


@dataclass
class AnswerColumn:
    """One strategy's answer and the button that stops it."""

    column: gr.Column
    card: gr.HTML
    stop: gr.Button


@dataclass
class Page:
    """Every component that a handler touches."""

    token: gr.State
    tour: gr.HTML
    privacy: gr.HTML
    files: gr.File
    examples: list[gr.Button]
    documents: gr.HTML
    delete_all: gr.Button
    status: gr.HTML
    question: gr.Textbox
    chips: list[gr.Button]
    ask: gr.Button
    stop: gr.Button
    follow: gr.Checkbox
    strategies: gr.CheckboxGroup
    ratio: gr.Radio
    mix: gr.Checkbox
    mix_alpha: gr.Slider
    mix_each: gr.Checkbox
    clue_note: gr.HTML
    clues: list[ClueRow]
    own: gr.Textbox
    again: gr.Button
    passages: gr.HTML
    answer_note: gr.HTML
    answers: dict[str, AnswerColumn]
    history: gr.HTML
    new: gr.Button
    markdown: gr.Button
    json: gr.Button
    export: gr.Textbox
    decoder: DecoderPage
    inside: InsidePage
    training: TrainingPage
    results: ResultsPage


def title(number: int, key: str) -> gr.HTML:
    """A section's heading."""
    return gr.HTML(f'<h2><span class="step" aria-hidden="true">{number}</span>' + i18n(key) + "</h2>")


def page(settings: Settings, token: gr.State) -> Page:
    """Lays the page out."""
    made: dict = {"token": token}
    with gr.Row(elem_id="top"):
        gr.HTML('<div class="masthead"><h1>memo</h1><p>' + i18n("tagline") + "</p></div>", elem_id="masthead")
        made["tour"] = gr.HTML(elem_id="tour-place", apply_default_css=False)
    with gr.Tabs(elem_id="tabs"):
        with gr.Tab(i18n("tab.ask"), id="ask", elem_classes="page"):
            made |= asking(settings)
        with gr.Tab(i18n("tab.decoder"), id="decoder", elem_classes="page") as tab:
            made["decoder"] = decoder_page(tab, i18n)
        with gr.Tab(i18n("tab.inside"), id="inside", elem_classes="page") as tab:
            made["inside"] = inside_page(tab, i18n)
        with gr.Tab(i18n("tab.training"), id="training", elem_classes="page") as tab:
            made["training"] = training_page(tab, i18n)
        with gr.Tab(i18n("tab.results"), id="results", elem_classes="page") as tab:
            made["results"] = results_page(tab, i18n)
    made["privacy"] = gr.HTML(elem_id="privacy")
    return Page(**made)


def asking(settings: Settings) -> dict:
    """The tab Ask."""
    made: dict = {}
    with gr.Row(elem_classes="pair"):
        with gr.Column(scale=5, min_width=320, elem_id="documents-panel"):
            made |= documents()
        with gr.Column(scale=6, min_width=320, elem_id="question-panel"):
            made |= question(settings)
    with gr.Row(elem_classes="pair"):
        with gr.Column(scale=5, min_width=320, elem_id="clues-panel"):
            made |= clues()
        with gr.Column(scale=6, min_width=320, elem_id="passages-panel"):
            title(4, "passages.title")
            made["passages"] = gr.HTML(js_on_load=ON_PASSAGES, elem_id="passages", apply_default_css=False)
    with gr.Column(elem_id="answers-panel"):
        made |= answers()
    with gr.Column(elem_id="conversation-panel"):
        made |= conversation()
    return made


def documents() -> dict:
    """Drop zone, examples, one card per document."""
    title(1, "documents.title")
    files = gr.File(file_count="multiple", label=i18n("documents.files"), show_label=False, height=140, elem_id="files")
    gr.HTML('<p class="hint">' + i18n("documents.kinds") + "</p>", apply_default_css=False)
    with gr.Row(elem_classes="examples"):
        buttons = [gr.Button(example.title, size="sm", elem_classes="chip-button") for example in examples()]
    cards = gr.HTML(js_on_load=ON_DOCUMENTS, elem_id="documents", apply_default_css=False)
    delete_all = gr.Button(i18n("delete_all"), size="sm", variant="secondary", elem_id="delete-all", interactive=False)
    return {"files": files, "examples": buttons, "documents": cards, "delete_all": delete_all}


def question(settings: Settings) -> dict:
    """Question, suggestions, options."""
    title(2, "question.title")
    box = gr.Textbox(
        label=i18n("question.label"), placeholder=i18n("question.placeholder"), lines=1, max_lines=6, max_length=2000,
        elem_id="question",
    )  # fmt: skip
    chips = [gr.Button("", size="sm", visible=False, elem_classes="chip-button question-chip") for _ in range(CHIPS)]
    with gr.Row(elem_classes="actions"):
        ask = gr.Button(i18n("ask"), variant="primary", scale=3, min_width=120, elem_id="ask")
        stop = gr.Button(i18n("stop_all"), variant="stop", scale=1, min_width=90, elem_id="stop", interactive=False)
    status = gr.HTML(elem_id="status", apply_default_css=False)
    follow = gr.Checkbox(False, label=i18n("follow"), info=i18n("follow.info"), visible=False, elem_id="follow")
    with gr.Accordion(i18n("options"), open=False, elem_id="options"):
        strategies = gr.CheckboxGroup(
            [(i18n(f"strategy.{name}"), name) for name in STRATEGIES], value=list(DEFAULT_COMPARISON),
            label=i18n("strategies.label"), info=i18n("strategies.info"), elem_id="strategies",
        )  # fmt: skip
        ratio = gr.Radio(
            [(f"1 : {n}", n) for n in sorted({*RATIOS, settings.ratio})], value=settings.ratio,
            label=i18n("ratio.label"), info=i18n("ratio.info"), elem_id="ratio",
        )  # fmt: skip
        mix = gr.Checkbox(False, label=i18n("mix"), info=i18n("mix.info"), interactive=False, elem_id="mix")
        mix_alpha = gr.Slider(
            0, 1, ALPHA, step=0.05, label=i18n("alpha"), interactive=False, buttons=[], elem_id="mix-alpha"
        )
        mix_each = gr.Checkbox(True, label=i18n("mix.each"), info=i18n("mix.each.info"), visible=False,
                               elem_id="mix-each")  # fmt: skip
    return {
        "question": box, "chips": chips, "ask": ask, "stop": stop, "status": status, "follow": follow,
        "strategies": strategies, "ratio": ratio, "mix": mix, "mix_alpha": mix_alpha,
        "mix_each": mix_each,
    }  # fmt: skip


def clues() -> dict:
    """The clues, each to be switched off or reworded, and one of the person's own."""
    title(3, "clues.title")
    note = gr.HTML(elem_id="clue-note", apply_default_css=False)
    with gr.Column(elem_id="clue-rows"):
        rows = [clue() for _ in range(CLUES)]
    own = gr.Textbox(
        label=i18n("clue.own"), placeholder=i18n("clue.own.placeholder"), max_lines=3, max_length=500, visible=False,
        elem_id="own-clue",
    )  # fmt: skip
    again = gr.Button(i18n("again"), variant="secondary", visible=False, elem_id="again")
    return {"clue_note": note, "clues": rows, "own": own, "again": again}


def clue() -> ClueRow:
    """One clue, not seen yet."""
    with gr.Row(visible=False, elem_classes="clue") as row:
        use = gr.Checkbox(True, label=i18n("clue.use"), container=False, min_width=28, scale=0, elem_classes="clue-use")
        with gr.Column(min_width=200):
            text = gr.Textbox(
                label=i18n("clue.text"), show_label=False, container=False, max_lines=4, max_length=500,
                interactive=False, elem_classes="clue-text",
            )  # fmt: skip
            origin = gr.HTML(apply_default_css=False)
    return ClueRow(row, use, text, origin)


def answers() -> dict:
    """A column for every strategy; those of the question on the board are shown."""
    title(5, "answers.title")
    note = gr.HTML(elem_id="answer-note", apply_default_css=False)
    columns = {}
    with gr.Row(elem_classes="answers"):
        for name in STRATEGIES:
            with gr.Column(visible=False, min_width=250, elem_id=f"answer-{name}") as col:
                card = gr.HTML(apply_default_css=False)
                stop = gr.Button(i18n("stop_one"), size="sm", variant="stop", visible=False, elem_classes="stop-one")
            columns[name] = AnswerColumn(col, card, stop)
    return {"answer_note": note, "answers": columns}


def conversation() -> dict:
    """What was asked, to take along or to forget."""
    title(6, "conversation.title")
    history = gr.HTML(elem_id="history", apply_default_css=False)
    with gr.Row(elem_classes="actions"):
        style = {"size": "sm", "interactive": False, "min_width": 120}
        new = gr.Button(i18n("conversation.new"), elem_id="new-conversation", **style)
        markdown = gr.Button(i18n("export.markdown"), elem_id="export-md", **style)
        as_json = gr.Button(i18n("export.json"), elem_id="export-json", **style)
    export = gr.Textbox(visible="hidden", label="export", elem_id="export")
    return {"history": history, "new": new, "markdown": markdown, "json": as_json, "export": export}
