"""The components of the tab Results: what is measured, and one's own questions.

In: the page's translations. Out: `ResultsPage`, whose fields the handlers in `memo.ui.results_tab` and
`memo.ui.testing_tab` read and write.
"""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from memo.answers import STRATEGIES
from memo.ui.measured import FIGURES, SECTIONS, names
from memo.ui.texts import ASSETS

FOLDER = ASSETS / "results"
PLOTS = 26  # as many as all sections have together


@dataclass
class ResultsPage:
    """Every component of the tab that a handler touches."""

    tab: gr.Tab
    section: gr.Dropdown
    sets: gr.Dropdown
    strategies: gr.Dropdown
    commands: gr.HTML
    tables: gr.Markdown
    plots: list[gr.Plot]
    json: gr.Button
    markdown: gr.Button
    export: gr.Textbox
    file: gr.File
    by: gr.CheckboxGroup
    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    rows: gr.HTML
    csv: gr.Button


def results_page(tab: gr.Tab, i18n: gr.I18n) -> ResultsPage:
    """Lays the tab out."""
    sets, strategies = names(FOLDER)
    plain = {"apply_default_css": False}
    with gr.Column(elem_id="testing-panel"):
        gr.HTML("<h2>" + i18n("testing.title") + "</h2>")
        gr.HTML('<p class="hint">' + i18n("testing.hint") + "</p>", **plain)
        file = gr.File(label=i18n("testing.file"), height=120, elem_id="testing-file")
        by = gr.CheckboxGroup(
            [(i18n(f"strategy.{name}"), name) for name in STRATEGIES], value=["memorag", "rag"],
            label=i18n("strategies.label"), elem_id="testing-by",
        )  # fmt: skip
        with gr.Row(elem_classes="actions"):
            start = gr.Button(i18n("testing.start"), variant="primary", min_width=120, elem_id="testing-start")
            stop = gr.Button(
                i18n("decoder.stop"), variant="stop", min_width=70, interactive=False, elem_id="testing-stop"
            )
            csv = gr.Button(i18n("testing.csv"), min_width=120, interactive=False, elem_id="testing-csv")
        status = gr.HTML(elem_id="testing-status", **plain)
        rows = gr.HTML(elem_id="testing-rows", **plain)
    with gr.Column(elem_id="results-panel"):
        gr.HTML("<h2>" + i18n("results.title") + "</h2>")
        with gr.Row():
            section = gr.Dropdown(
                [(i18n(f"results.{name}"), name) for name in (*SECTIONS, FIGURES)], value=SECTIONS[0],
                label=i18n("results.section"), elem_id="results-section",
            )  # fmt: skip
            one = gr.Dropdown(sets, value=[], multiselect=True, label=i18n("results.sets"), elem_id="results-sets")
            two = gr.Dropdown(
                strategies, value=[], multiselect=True, label=i18n("results.strategies"), elem_id="results-strategies"
            )
        with gr.Row(elem_classes="actions"):
            json = gr.Button(i18n("results.json"), size="sm", min_width=120, elem_id="results-json")
            markdown = gr.Button("RESULTS.md", size="sm", min_width=120, elem_id="results-md")
        commands = gr.HTML(elem_id="results-commands", **plain)
        tables = gr.Markdown(elem_id="results-tables")
        plots = [gr.Plot(show_label=False, visible=False, elem_id=f"results-plot-{i}") for i in range(PLOTS)]
        export = gr.Textbox(visible="hidden", label="export", elem_id="results-export")
    return ResultsPage(
        tab, section, one, two, commands, tables, plots, json, markdown, export, file, by, start, stop, status, rows,
        csv,
    )  # fmt: skip
