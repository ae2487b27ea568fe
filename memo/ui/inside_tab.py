"""The handlers of the tab Inside the memory: what happens on a click, and what is drawn while the models work.

In: the components of `memo.ui.inside_layout.InsidePage`, and the Ask page, whose visitors these are. Out: wired events.
As there, work is begun here and done in a thread of its own (`memo.ui.looking`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from memo.answers import clean_question
from memo.errors import MemoError
from memo.ui import inside_html
from memo.ui.ask import EVERY, QUICK, WATCHING, AskPage
from memo.ui.draw import Updates
from memo.ui.looking import PARTS
from memo.ui.texts import say
from memo.ui.visits import Visit

AT_ONCE = 8  # visitors whose look inside is watched at the same time


class InsideTab:
    """Handlers over the tab. Holds nothing of any visitor."""

    def __init__(self, ask: AskPage) -> None:
        self.ask, self.page = ask, ask.page.inside

    def wire(self) -> None:
        """Connects every component to its handler."""
        p, token = self.page, self.ask.page.token
        quick, watching = QUICK, WATCHING | {"concurrency_limit": AT_ONCE}
        drawn = [p.status, p.stop, p.text, p.clues, p.map, p.slot, p.losses, p.losses_note, p.page]

        def on(handler: Callable) -> Callable:
            return self.ask.told(handler, p.status)

        p.tab.select(self.ask.opened(self.look_inside, p.status), token, drawn, **quick)
        for component in (p.text, p.clues, p.slot):
            component.click(on(self.pick_inside), token, drawn, **quick)
        asked = [token, p.question]
        gr.on([p.recall.click, p.question.submit], on(self.recall_inside), asked, drawn, **quick).then(
            on(self.watch_inside), token, drawn, **watching
        )
        for button, begin in ((p.measure, self.measure_inside), (p.remember, self.remember_inside)):
            button.click(on(begin), token, drawn, **quick).then(on(self.watch_inside), token, drawn, **watching)
        p.stop.click(on(self.stop_inside), token, p.status, **quick)

    # --- what happens ---

    def look_inside(self, token: str, request: gr.Request) -> Updates:
        """The tab is opened: documents may have come, gone or been read again meanwhile."""
        visit = self.ask.visit(token, request)
        self._open(visit)
        return self.draw(visit, PARTS)

    def pick_inside(self, token: str, request: gr.Request, event: gr.EventData) -> Updates:
        visit = self.ask.visit(token, request)
        data: dict[str, Any] = event._data if isinstance(event._data, dict) else {}
        looking, shown, number = visit.looking, Counter(visit.looking.versions), data.get("number")
        if data.get("pick") == "document":
            self._open(visit, str(data.get("id")))
        elif self._open(visit) and isinstance(number, int):
            match data.get("pick"):
                case "part":
                    looking.choose_part(number)
                case "slot":
                    looking.choose_slot(number, again=True)
                case "place":
                    looking.choose_slot(number)
                case "clue":
                    looking.choose_clue(number, -1)
                case "token":
                    looking.choose_clue(*divmod(number, inside_html.STRIDE))
                case "cell" if isinstance(layer := data.get("layer"), int):
                    looking.choose_cell(number, layer)
        return self.draw(visit, [part for part in PARTS if looking.versions[part] != shown[part]])

    def recall_inside(self, token: str, request: gr.Request, question: str) -> Updates:
        visit = self.ask.visit(token, request)
        if self._open(visit):
            try:
                last = visit.board.question if visit.board else ""
                visit.looking.recall(clean_question((question or "").strip() or last))
            except MemoError:
                self._refuse(visit, "inside.no_question")
        return self.draw(visit, PARTS)

    def measure_inside(self, token: str, request: gr.Request) -> Updates:
        visit = self.ask.visit(token, request)
        if self._open(visit):
            visit.looking.measure()
        return self.draw(visit, PARTS)

    def remember_inside(self, token: str, request: gr.Request) -> Updates:
        visit = self.ask.visit(token, request)
        if self._open(visit):
            visit.looking.remember()
        return self.draw(visit, PARTS)

    def stop_inside(self, token: str, request: gr.Request) -> Updates:
        self.ask.visit(token, request).looking.stop()
        return {}

    async def watch_inside(self, token: str, request: gr.Request) -> AsyncIterator[Updates]:
        visit = self.ask.visit(token, request)
        looking, shown = visit.looking, Counter[str]()
        while True:
            running, now = looking.running, Counter(looking.versions)
            if changed := [part for part in PARTS if now[part] != shown[part]]:
                shown = now
                yield self.draw(visit, changed)
            if not running or visit.session.closed:
                break
            await asyncio.sleep(EVERY)

    def _open(self, visit: Visit, document: str = "") -> bool:
        """Opens a document, else the one that is open, else the first; whether there is one to look at."""
        looking, known = visit.looking, visit.session.rag.library.documents
        document = next((one for one in (document, looking.document) if one in known), next(iter(known), ""))
        if not document:
            looking.clear()
            self._refuse(visit, "inside.no_document")
            return False
        pages = next((r.document.pages for r in visit.rows.values() if r.document and r.document.id == document), ())
        try:
            looking.open(document, pages)
        except MemoError as error:
            looking.clear()
            looking.error = error
            looking.touch(*PARTS)
            return False
        return True

    @staticmethod
    def _refuse(visit: Visit, key: str) -> None:
        visit.looking.refused = key
        visit.looking.touch("status")

    # --- drawing ---

    def draw(self, visit: Visit, parts: Any) -> Updates:
        """Some of `PARTS`."""
        p, updates = self.page, Updates()
        for part in parts:
            match part:
                case "status":
                    updates |= {p.status: inside_html.status(visit)}
                    updates |= {p.stop: gr.Button(interactive=bool(visit.looking.running))}
                case "text":
                    updates |= {p.text: inside_html.text(visit)}
                case "clues":
                    updates |= {p.clues: inside_html.clues(visit)}
                case "map":
                    updates |= {p.map: self._map(visit), p.slot: inside_html.slot(visit)}
                case "losses":
                    updates |= {p.losses: self._losses(visit), p.losses_note: inside_html.losses_note(visit)}
                case "page":
                    updates |= {p.page: inside_html.page(visit)}
        return updates

    @staticmethod
    def _map(visit: Visit) -> gr.Plot:
        looking, language = visit.looking, visit.language
        if (mass := looking.mass()) is None:
            return gr.Plot(visible=False)
        from memo import plots_inside

        texts = [looking.text[slot.start : slot.end] for slot in looking.slots]
        places = [slot.start / max(1, len(looking.text)) for slot in looking.slots]
        titles = tuple(say(language, f"inside.map.{name}") for name in ("place", "layer", "attention"))
        return gr.Plot(value=plots_inside.attention(mass, texts, places, looking.slot, titles), visible=True)

    @staticmethod
    def _losses(visit: Visit) -> gr.Plot:
        looking, language = visit.looking, visit.language
        if not looking.losses:
            return gr.Plot(visible=False)
        from memo import plots_inside

        names = tuple(say(language, f"inside.losses.{name}") for name in ("none", "memory", "full"))
        titles = tuple(say(language, f"inside.losses.{name}") for name in ("place", "value"))
        return gr.Plot(value=plots_inside.losses(list(looking.losses), names, titles), visible=True)
