"""The components of the tab Training: what is trained and how, its curve beside the shipped one, before and after.

In: the page's translations. Out: `TrainingPage`, whose fields the handlers in `memo.ui.training_tab` read and write.
"""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from memo.ui.training import RATES, STAGES, STEPS


@dataclass
class TrainingPage:
    """Every component of the tab that a handler touches."""

    tab: gr.Tab
    kind: gr.Radio
    steps: gr.Slider
    rate: gr.Radio
    lessons: gr.File
    brought: gr.HTML  # lessons
    start: gr.Button
    stop: gr.Button
    status: gr.HTML
    curve: gr.Plot
    outcome: gr.HTML
    keep: gr.Button
    drop: gr.Button
    download: gr.Button
    address: gr.Textbox
    shipped: gr.Plot
    shipped_note: gr.HTML
    typed: gr.Textbox
    file: gr.File
    compare: gr.Button
    table: gr.HTML


def training_page(tab: gr.Tab, i18n: gr.I18n) -> TrainingPage:
    """Lays the tab out."""

    def title(key: str) -> None:
        gr.HTML("<h2>" + i18n(key) + "</h2>")

    def hint(key: str) -> None:
        gr.HTML('<p class="hint">' + i18n(key) + "</p>", **plain)

    plain = {"apply_default_css": False}
    gr.HTML('<p class="lead">' + i18n("weights.lead") + "</p>", **plain)
    with gr.Column(elem_id="weights-plan-panel"):
        title("weights.plan.title")
        with gr.Row():
            kind = gr.Radio(
                [(i18n(f"weights.kind.{name}"), name) for name in STAGES], value=STAGES[0], scale=5, min_width=300,
                label=i18n("weights.kind"), info=i18n("weights.kind.info"), elem_id="weights-kind",
            )  # fmt: skip
            steps = gr.Slider(
                *STEPS, 100, step=10, label=i18n("weights.steps"), info=i18n("weights.steps.info"), buttons=[],
                scale=4, min_width=260, elem_id="weights-steps",
            )  # fmt: skip
            rate = gr.Radio(
                [(f"{rate:g}", rate) for rate in RATES], value=RATES[1], label=i18n("weights.rate"), scale=4,
                min_width=260, info=i18n("weights.rate.info"), elem_id="weights-rate",
            )  # fmt: skip
        lessons = gr.File(label=i18n("weights.lessons"), height=120, visible=False, elem_id="weights-lessons")
        brought = gr.HTML(visible=False, elem_id="weights-brought", **plain)
        with gr.Row(elem_classes="actions"):
            start = gr.Button(i18n("weights.start"), variant="primary", min_width=160, elem_id="weights-start")
            stop = gr.Button(
                i18n("decoder.stop"), variant="stop", min_width=70, interactive=False, elem_id="weights-stop"
            )
        status = gr.HTML(elem_id="weights-status", **plain)
    with gr.Row(elem_classes="pair"):
        with gr.Column(min_width=320, elem_id="weights-curve-panel"):
            title("weights.curve.title")
            curve = gr.Plot(show_label=False, visible=False, elem_id="weights-curve")
            outcome = gr.HTML(elem_id="weights-outcome", **plain)
            with gr.Row(elem_classes="actions"):
                style = {"size": "sm", "interactive": False, "min_width": 90}
                keep = gr.Button(i18n("weights.keep"), elem_id="weights-keep", **style)
                drop = gr.Button(i18n("weights.drop"), elem_id="weights-drop", **style)
                download = gr.Button(i18n("weights.download"), elem_id="weights-download", **style)
            address = gr.Textbox(visible="hidden", label="address", elem_id="weights-address")
        with gr.Column(min_width=320, elem_id="weights-shipped-panel"):
            title("weights.shipped.title")
            shipped = gr.Plot(show_label=False, visible=False, elem_id="weights-shipped")
            shipped_note = gr.HTML(elem_id="weights-shipped-note", **plain)
    with gr.Column(elem_id="weights-compare-panel"):
        title("weights.compare.title")
        hint("weights.compare.hint")
        with gr.Row():
            typed = gr.Textbox(
                label=i18n("weights.typed"), placeholder=i18n("weights.typed.placeholder"), lines=4, max_lines=8,
                max_length=4000, scale=3, min_width=300, elem_id="weights-typed",
            )  # fmt: skip
            file = gr.File(
                label=i18n("testing.file"), height=120, scale=2, min_width=240, elem_id="weights-questions"
            )
        with gr.Row(elem_classes="actions"):
            compare = gr.Button(i18n("weights.compare"), min_width=120, interactive=False, elem_id="weights-compare")
        table = gr.HTML(elem_id="weights-table", **plain)
    return TrainingPage(
        tab, kind, steps, rate, lessons, brought, start, stop, status, curve, outcome, keep, drop, download, address,
        shipped, shipped_note, typed, file, compare, table,
    )  # fmt: skip
