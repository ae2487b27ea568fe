"""The components of the tab Inside the memory: the text with its slots, where a clue looks, losses, one part recalled.

In: the page's translations. Out: `InsidePage`, whose fields the handlers in `memo.ui.inside_tab` read and write.
"""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

# A click tells the server what was chosen: a document, a slot, a clue's token, a way to another part of the text.
ON_PICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-pick]');
  if (!button) return;
  const {pick, number, id} = button.dataset;
  trigger('click', {pick, number: Number(number), id});
});
element.addEventListener('change', (event) => {
  if (event.target.matches('select')) trigger('click', {pick: 'part', number: Number(event.target.value)});
});
"""
# The same. A text that is drawn anew stays where it was scrolled to, and shows the chosen slot.
ON_TEXT = (
    ON_PICK
    + """
const kept = {part: '', top: 0};
element.addEventListener('scroll', ({target}) => {
  if (target.matches('.slots')) Object.assign(kept, {part: target.dataset.part, top: target.scrollTop});
}, true);
const show = () => {
  const text = element.querySelector('.slots');
  if (text && text.dataset.part === kept.part) text.scrollTop = kept.top;
  const slot = element.querySelector('.stretch.chosen')?.getClientRects()[0], box = text?.getBoundingClientRect();
  if (slot && (slot.top < box.top || slot.bottom > box.bottom)) text.scrollTop += slot.top - box.top - box.height / 3;
};
watch('value', () => setTimeout(show, 30));
"""
)
# A cell of the heat map is a place in the text. plotly forgets who listens when it draws anew: listen at each press.
ON_MAP = (
    ON_PICK
    + """
document.addEventListener('pointerdown', (event) => {
  const map = event.target.closest?.('#inside-map .js-plotly-plot');
  if (!map?.on) return;
  map.removeAllListeners('plotly_click');
  map.on('plotly_click', ({points: [cell]}) => trigger('click', {pick: 'cell', number: cell.x, layer: cell.y - 1}));
}, true);
"""
)


@dataclass
class InsidePage:
    """Every component of the tab that a handler touches."""

    tab: gr.Tab
    status: gr.HTML
    text: gr.HTML  # the documents to choose from, and a part of one with its slots
    question: gr.Textbox
    recall: gr.Button
    stop: gr.Button
    clues: gr.HTML
    map: gr.Plot
    slot: gr.HTML  # that is looked at, and the strongest ones
    measure: gr.Button
    losses: gr.Plot
    losses_note: gr.HTML
    remember: gr.Button
    page: gr.HTML  # a part, recalled beside what it is


def inside_page(tab: gr.Tab, i18n: gr.I18n) -> InsidePage:
    """Lays the tab out."""

    def title(key: str) -> None:
        gr.HTML("<h2>" + i18n(key) + "</h2>")

    def hint(key: str) -> None:
        gr.HTML('<p class="hint">' + i18n(key) + "</p>", **plain)

    plain = {"apply_default_css": False}
    gr.HTML('<p class="lead">' + i18n("inside.lead") + "</p>", **plain)
    status = gr.HTML(elem_id="inside-status", **plain)
    with gr.Row(elem_classes="pair"):
        with gr.Column(scale=6, min_width=320, elem_id="inside-text-panel"):
            title("inside.text.title")
            text = gr.HTML(js_on_load=ON_TEXT, elem_id="inside-text", **plain)
        with gr.Column(scale=6, min_width=320, elem_id="inside-clues-panel"):
            title("inside.clues.title")
            question = gr.Textbox(
                label=i18n("inside.question"), placeholder=i18n("inside.question.placeholder"), lines=1, max_lines=4,
                max_length=2000, elem_id="inside-question",
            )  # fmt: skip
            with gr.Row(elem_classes="actions"):
                recall = gr.Button(
                    i18n("inside.recall"), variant="primary", scale=3, min_width=120, elem_id="inside-recall"
                )
                stop = gr.Button(
                    i18n("inside.stop"), variant="stop", scale=1, min_width=70, interactive=False, elem_id="inside-stop"
                )
            clues = gr.HTML(js_on_load=ON_PICK, elem_id="inside-clues", **plain)
            plot = gr.Plot(show_label=False, visible=False, elem_id="inside-map")
            slot = gr.HTML(js_on_load=ON_MAP, elem_id="inside-slot", **plain)
    with gr.Column(elem_id="inside-losses-panel"):
        title("inside.losses.title")
        hint("inside.losses.hint")
        with gr.Row(elem_classes="actions"):
            measure = gr.Button(i18n("inside.measure"), variant="primary", min_width=160, elem_id="inside-measure")
        losses = gr.Plot(show_label=False, visible=False, elem_id="inside-losses")
        note = gr.HTML(elem_id="inside-losses-note", **plain)
    with gr.Column(elem_id="inside-page-panel"):
        title("inside.page.title")
        hint("inside.page.hint")
        with gr.Row(elem_classes="actions"):
            remember = gr.Button(i18n("inside.remember"), variant="primary", min_width=160, elem_id="inside-remember")
        page = gr.HTML(elem_id="inside-page", **plain)
    return InsidePage(
        tab, status, text, question, recall, stop, clues, plot, slot, measure, losses, note, remember, page
    )
