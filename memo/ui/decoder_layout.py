"""The components of the tab Memory Decoder: a text, one token of it, and training a decoder of one's own.

In: the page's translations. Out: `DecoderPage`, whose fields the handlers in `memo.ui.decoder_tab` read and write.
"""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from memo.ui.decoding import ALPHA

# A click on a token tells the server which; that it is the one looked at is shown without waiting for it.
ON_TOKENS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-token]');
  if (!button) return;
  element.querySelectorAll('button[data-token]').forEach((one) => {
    one.setAttribute('aria-pressed', one === button);
  });
  trigger('click', {token: Number(button.dataset.token)});
});
"""


@dataclass
class DecoderPage:
    """Every component of the tab that a handler touches."""

    tab: gr.Tab
    which: gr.HTML  # decoder there is
    text: gr.Textbox
    read: gr.Button
    write: gr.Button
    stop: gr.Button
    alpha: gr.Slider
    status: gr.HTML
    sums: gr.HTML  # perplexities
    tokens: gr.HTML
    token: gr.HTML  # that is looked at
    bars: gr.Plot
    near: gr.HTML
    train: gr.Button
    stop_training: gr.Button
    training: gr.HTML


def decoder_page(tab: gr.Tab, i18n: gr.I18n) -> DecoderPage:
    """Lays the tab out."""

    def title(key: str) -> None:
        gr.HTML("<h2>" + i18n(key) + "</h2>")

    plain = {"apply_default_css": False}
    gr.HTML('<p class="lead">' + i18n("decoder.lead") + "</p>", **plain)
    which = gr.HTML(elem_id="decoder-which", **plain)
    with gr.Row(elem_classes="pair"):
        with gr.Column(scale=6, min_width=320, elem_id="text-panel"):
            title("decoder.text.title")
            text = gr.Textbox(
                label=i18n("decoder.text"), placeholder=i18n("decoder.text.placeholder"), lines=3, max_lines=10,
                max_length=6000, elem_id="trace-text",
            )  # fmt: skip
            with gr.Row(elem_classes="actions"):
                read = gr.Button(i18n("decoder.read"), variant="primary", min_width=90, elem_id="trace-read")
                write = gr.Button(i18n("decoder.write"), min_width=90, elem_id="trace-write")
                stop = gr.Button(
                    i18n("decoder.stop"), variant="stop", min_width=70, interactive=False, elem_id="trace-stop"
                )
            status = gr.HTML(elem_id="trace-status", **plain)
            alpha = gr.Slider(
                0, 1, ALPHA, step=0.05, label=i18n("alpha"), info=i18n("alpha.info"), interactive=True, buttons=[],
                elem_id="trace-alpha",
            )  # fmt: skip
            sums = gr.HTML(elem_id="trace-sums", **plain)
            tokens = gr.HTML(js_on_load=ON_TOKENS, elem_id="trace-tokens", **plain)
        with gr.Column(scale=5, min_width=320, elem_id="token-panel"):
            title("decoder.token.title")
            token = gr.HTML(elem_id="trace-token", **plain)
            bars = gr.Plot(show_label=False, visible=False, elem_id="trace-bars")
            near = gr.HTML(elem_id="trace-near", **plain)
    with gr.Column(elem_id="training-panel"):
        title("decoder.training.title")
        gr.HTML('<p class="hint">' + i18n("decoder.training.hint") + "</p>", **plain)
        with gr.Row(elem_classes="actions"):
            train = gr.Button(i18n("decoder.train"), variant="primary", min_width=160, elem_id="train")
            stop_training = gr.Button(
                i18n("decoder.stop"), variant="stop", min_width=70, interactive=False, elem_id="train-stop"
            )
        training = gr.HTML(elem_id="training", **plain)
    return DecoderPage(
        tab, which, text, read, write, stop, alpha, status, sums, tokens, token, bars, near, train, stop_training,
        training,
    )  # fmt: skip
