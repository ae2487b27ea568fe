"""The handlers of the tab Memory Decoder: what happens on a click, and what is drawn while the models work.

In: the components of `memo.ui.decoder_layout.DecoderPage`, and the Ask page, whose visitors these are. Out: wired
events. As there, work is begun here and done in threads of its own (`memo.ui.decoding`, `memo.ui.learning`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import gradio as gr

from memo.decoder_file import ROUTED
from memo.errors import MemoError
from memo.ui import chips
from memo.ui.ask import EVERY, QUICK, WATCHING, AskPage
from memo.ui.decoding import ALPHA, best_alpha, decoder_of, routed, usable
from memo.ui.draw import Updates
from memo.ui.texts import say
from memo.ui.visits import Visit

AT_ONCE = 8  # visitors whose texts are watched at the same time


class DecoderTab:
    """Handlers over the tab. Holds nothing of any visitor."""

    def __init__(self, ask: AskPage) -> None:
        self.ask, self.page = ask, ask.page.decoder

    def wire(self) -> None:
        """Connects every component to its handler."""
        p, token = self.page, self.ask.page.token
        quick, watching = QUICK, WATCHING | {"concurrency_limit": AT_ONCE}
        training = watching | {"concurrency_limit": None}  # it takes minutes, and nothing but a look now and then
        text = [p.status, p.stop, p.sums, p.tokens, *self.looked_at()]
        trained = self.trained()

        def on(handler: Callable) -> Callable:
            return self.ask.told(handler, p.status)

        for button, begin in ((p.read, self.read_text), (p.write, self.continue_text)):
            button.click(on(begin), [token, p.text], text, **quick).then(on(self.watch_text), token, text, **watching)
        p.stop.click(on(self.stop_text), token, p.status, **quick)
        p.tokens.click(on(self.choose_token), token, self.looked_at(), **quick)
        again = [p.sums, p.tokens, p.token, p.bars]
        p.alpha.input(on(self.change_alpha), [token, p.alpha], again, trigger_mode="always_last", **quick)
        p.train.click(on(self.train), token, trained, **quick).then(on(self.watch_training), token, trained, **training)
        p.stop_training.click(on(self.stop_training), token, p.status, **quick)
        p.tab.select(self.ask.opened(self.look, p.status), token, self.everything(), **quick)

    def looked_at(self) -> list:
        return [self.page.token, self.page.bars, self.page.near]

    def trained(self) -> list:
        """What a training changes."""
        p, ask = self.page, self.ask.page
        return [p.which, p.training, p.train, p.stop_training, p.alpha, p.status, ask.mix, ask.mix_alpha, ask.mix_each]

    # --- a text ---

    def read_text(self, token: str, request: gr.Request, text: str) -> Updates:
        return self._begin(self.ask.visit(token, request), text, write=False)

    def continue_text(self, token: str, request: gr.Request, text: str) -> Updates:
        return self._begin(self.ask.visit(token, request), text, write=True)

    def _begin(self, visit: Visit, text: str, write: bool) -> Updates:
        if not usable(visit.session):
            visit.decoding.refused = f"decoder.which.{decoder_of(visit.session) or 'none'}"
        elif not (text or "").strip():
            visit.decoding.refused = "decoder.no_text"
        else:
            visit.decoding.begin(text, write)
        return self.draw_text(visit) | self.draw_token(visit)

    async def watch_text(self, token: str, request: gr.Request) -> AsyncIterator[Updates]:
        visit, shown = self.ask.visit(token, request), -1
        while True:
            running, version = visit.decoding.running, visit.decoding.version
            if version != shown:
                shown = version
                yield self.draw_text(visit)
            if not running or visit.session.closed:
                break
            await asyncio.sleep(EVERY)

    def stop_text(self, token: str, request: gr.Request) -> Updates:
        self.ask.visit(token, request).decoding.stop()
        return {}

    def choose_token(self, token: str, request: gr.Request, event: gr.EventData) -> Updates:
        visit = self.ask.visit(token, request)
        chosen = event._data.get("token") if isinstance(event._data, dict) else None
        if isinstance(chosen, int) and 0 <= chosen < len(visit.decoding.tokens):
            visit.decoding.chosen = chosen
        return self.draw_token(visit)

    def change_alpha(self, token: str, request: gr.Request, alpha: float) -> Updates:
        """Mixes again, without running a model."""
        visit = self.ask.visit(token, request)
        visit.decoding.alpha = float(alpha)
        p, drawn = self.page, self.draw_token(visit, near=False)
        return drawn | {p.sums: chips.sums(visit), p.tokens: chips.tokens(visit)}

    # --- training ---

    def train(self, token: str, request: gr.Request) -> Updates:
        visit = self.ask.visit(token, request)
        visit.learning.begin()
        return self.draw_training(visit)

    async def watch_training(self, token: str, request: gr.Request) -> AsyncIterator[Updates]:
        visit, shown = self.ask.visit(token, request), None
        while True:
            running, now = visit.learning.running, chips.training(visit)
            if now != shown:
                shown = now
                yield self.draw_training(visit)
            if not running or visit.session.closed:
                break
            await asyncio.sleep(EVERY)
        if visit.learning.about and not visit.learning.error:
            yield self.fitting(visit) | self.draw_training(visit) | {self.page.status: chips.status(visit)}

    def stop_training(self, token: str, request: gr.Request) -> Updates:
        self.ask.visit(token, request).learning.stop()
        return {}

    def look(self, token: str, request: gr.Request) -> Updates:
        """The tab is opened: documents may have come or gone meanwhile."""
        return self.draw(self.ask.visit(token, request))

    # --- drawing ---

    def everything(self) -> list:
        p = self.page
        return [p.stop, p.sums, p.tokens, *self.looked_at(), *self.trained()]

    def draw(self, visit: Visit) -> Updates:
        """All of the tab."""
        return self.draw_text(visit) | self.draw_token(visit) | self.draw_training(visit)

    def draw_text(self, visit: Visit) -> Updates:
        p = self.page
        return {
            p.status: chips.status(visit), p.stop: gr.Button(interactive=visit.decoding.running),
            p.sums: chips.sums(visit), p.tokens: chips.tokens(visit),
        }  # fmt: skip

    def draw_token(self, visit: Visit, near: bool = True) -> Updates:
        """The token that is looked at. near: its neighbours too."""
        p, language, token = self.page, visit.language, visit.decoding.token
        updates: Updates = {p.token: chips.token(visit), p.bars: gr.Plot(visible=False)}
        if token is not None and token.predicted:
            from memo import plots_decoder

            names = tuple(say(language, f"decoder.{name}") for name in ("llm", "memory", "mix"))
            figure = plots_decoder.candidates(token, visit.decoding.alpha, names)
            updates[p.bars] = gr.Plot(value=figure, visible=True)
        if near:
            updates[p.near] = self._neighbours(visit)
        return updates

    @staticmethod
    def _neighbours(visit: Visit) -> str:
        if visit.decoding.token is None or not visit.decoding.token.predicted:
            return ""
        try:
            return chips.neighbours(visit, visit.decoding.neighbours())
        except MemoError as error:
            return chips.neighbours(visit, None, error)

    def draw_training(self, visit: Visit) -> Updates:
        p, running = self.page, visit.learning.running
        return {
            p.which: chips.which(visit), p.training: chips.training(visit), p.train: gr.Button(interactive=not running),
            p.stop_training: gr.Button(interactive=running), **self.ask.draw_mix(visit),
        }  # fmt: skip

    def fitting(self, visit: Visit) -> Updates:
        """Both alphas as they suit a decoder that is new; where it helps with nothing, the tab shows it still."""
        alpha = best_alpha(visit.session)
        visit.decoding.alpha, visit.decoding.refused = alpha or ALPHA, ""
        visit.mix((ROUTED if routed(visit.session) else alpha) if visit.alpha else 0.0)
        return {self.page.alpha: gr.Slider(value=visit.decoding.alpha), self.ask.page.mix_alpha: gr.Slider(
            value=alpha, interactive=usable(visit.session) and not routed(visit.session))}  # fmt: skip
