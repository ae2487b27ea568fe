"""The Ask page's handlers: what happens on a click, and what is drawn while the models work.

In: the components of `memo.ui.layout.Page` and the sessions. Out: wired events. Every handler takes the session's token
from the server's own state, and does nothing without it. Work is begun here and done elsewhere (`memo.ui.visits`); the
handlers that watch it are coroutines, so that waiting holds no thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import wraps
from inspect import isasyncgenfunction
from typing import Any

import gradio as gr

from memo.answers import STRATEGIES, clean_question
from memo.decoder_file import ROUTED
from memo.errors import MemoError
from memo.events import Clue
from memo.sessions import Sessions
from memo.ui import cards, exports
from memo.ui.board import Board
from memo.ui.decoding import routed, usable
from memo.ui.draw import Drawn, Painter, Updates
from memo.ui.layout import CLUES, Example, Page, examples
from memo.ui.texts import language_of, say
from memo.ui.visits import Visit
from memo.ui.warmup import Warmup

# How handlers are wired: those that begin or draw something at once, and those that watch work from the queue.
WATCHING = {"show_progress": "hidden", "api_visibility": "private"}
QUICK = WATCHING | {"queue": False}
EVERY = 0.12  # seconds between two looks at the work
AT_ONCE = 4  # questions of different visitors that are answered at the same time; the model takes turns
UPLOADS = 8  # visitors whose documents are taken in at the same time

DOWNLOAD = """(text) => {
  if (!text) return;
  const name = %r, link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: %r}));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""


class Ended(Exception):
    """There is no such visitor, or no longer."""


class AskPage(Painter):
    """Handlers over one page layout. Holds nothing of any visitor."""

    def __init__(self, page: Page, sessions: Sessions, warmup: Warmup) -> None:
        super().__init__(page, warmup)
        self.sessions = sessions

    # --- wiring ---

    def wire(self) -> None:
        """Connects every component to its handler."""
        p, quick = self.page, QUICK
        answering = WATCHING | {"concurrency_id": "ask", "concurrency_limit": AT_ONCE}
        reading = answering | {"concurrency_id": "documents", "concurrency_limit": UPLOADS}
        documents = [p.documents, p.status, p.delete_all, p.ratio, p.mix, p.mix_alpha, p.mix_each, *p.chips]

        on = self.told
        p.files.upload(on(self.receive), [p.token, p.files], [p.files, *documents], **quick).then(
            on(self.watch_documents), p.token, documents, **reading
        )
        for button, example in zip(p.examples, examples(), strict=True):
            button.click(on(self.take_example(example)), p.token, documents, **quick).then(
                on(self.watch_documents), p.token, documents, **reading
            )
        p.documents.click(on(self.change_document), p.token, documents, **quick).then(
            on(self.watch_documents), p.token, documents, **reading
        )
        p.ratio.input(on(self.change_ratio), [p.token, p.ratio], documents, **quick).then(
            on(self.watch_documents), p.token, documents, **reading
        )
        mixed = [p.mix, p.mix_alpha, p.mix_each]
        gr.on([one.input for one in mixed], on(self.change_mix), [p.token, *mixed], [p.status, p.mix_alpha], **quick)
        for chip in p.chips:
            chip.click(lambda text: text, chip, p.question, **quick)

        drawn = self.everything()
        p.delete_all.click(on(self.delete_all), p.token, [*documents, *drawn], **quick)
        asked = [p.token, p.question, p.strategies, p.follow]
        gr.on([p.ask.click, p.question.submit], on(self.ask), asked, drawn, **quick).then(
            on(self.watch_answers), p.token, drawn, **answering
        )
        edits = [part for row in p.clues for part in (row.use, row.text)]
        p.again.click(on(self.again), [p.token, p.own, *edits], drawn, **quick).then(
            on(self.watch_answers), p.token, drawn, **answering
        )
        p.stop.click(on(self.stop("")), p.token, p.status, **quick)
        for name, column in p.answers.items():
            column.stop.click(on(self.stop(name)), p.token, p.status, **quick)

        p.new.click(on(self.new_conversation), p.token, drawn, **quick)
        for button, export, name, kind in (
            (p.markdown, self.as_markdown, "memo-conversation.md", "text/markdown"),
            (p.json, self.as_json, "memo-conversation.json", "application/json"),
        ):
            button.click(on(export), p.token, [p.export, p.status], **quick).then(
                None, p.export, None, js=DOWNLOAD % (name, kind), **quick
            )

    def visit(self, token: object, request: gr.Request) -> Visit:
        """The visitor whose page this is; anyone else is told that the session has ended."""
        try:
            return Visit.of(self.sessions, token)
        except MemoError:
            raise Ended from None

    def opened(self, handler: Callable, status: Any = None) -> Callable:
        """What a tab does when it is opened, `told`; as long as the session is only being opened, nothing."""

        @wraps(handler)
        def look(token: str, request: gr.Request, *values: Any) -> Updates:
            return handler(token, request, *values) if token else {}

        return self.told(look, status)

    def told(self, handler: Callable, status: Any = None) -> Callable:
        """The handler, which says in `status` (by default below the question) that the session has ended instead of
        failing."""

        def ended(request: gr.Request) -> Updates:
            notice = cards.notice("error", say(language_of(request), "session.ended"))
            return {status or self.page.status: notice}

        unchanged = {status or self.page.status: gr.skip()}
        if isasyncgenfunction(handler):

            @wraps(handler)
            async def watch(token: str, request: gr.Request) -> AsyncIterator[Updates]:
                try:
                    async for updates in handler(token, request):
                        yield updates
                except Ended:
                    yield ended(request)

            return watch

        @wraps(handler)
        def handle(token: str, request: gr.Request, *values: Any) -> Updates:
            try:
                return handler(token, request, *values) or unchanged  # nothing at all would be drawn as it is
            except Ended:
                return ended(request)

        return handle

    # --- documents ---

    def receive(self, token: str, request: gr.Request, files: list[str] | None) -> Updates:
        visit = self.visit(token, request)
        visit.receive(files or [])
        return {self.page.files: None} | self.draw_documents(visit)

    def take_example(self, example: Example) -> Callable:
        def take(token: str, request: gr.Request) -> Updates:
            visit = self.visit(token, request)
            visit.receive([example.path], example=True)
            visit.example = example.title
            return self.draw_documents(visit)

        return take

    def change_document(self, token: str, request: gr.Request, event: gr.EventData) -> Updates:
        visit = self.visit(token, request)
        data = event._data if isinstance(event._data, dict) else {}
        if data.get("delete"):
            visit.delete(str(data["delete"]))
        elif data.get("study"):
            visit.study(str(data["study"]))
        return self.draw_documents(visit)

    def delete_all(self, token: str, request: gr.Request) -> Updates:
        visit = self.visit(token, request)
        visit.delete_all()
        return self.draw_documents(visit) | self.draw(visit, Drawn())

    def change_ratio(self, token: str, request: gr.Request, ratio: int) -> Updates:
        visit = self.visit(token, request)
        visit.change_ratio(ratio)
        return self.draw_documents(visit)

    def change_mix(self, token: str, request: gr.Request, mix: bool, alpha: float, each: bool) -> Updates:
        visit = self.visit(token, request)
        each = each and routed(visit.session)
        visit.mix((ROUTED if each else float(alpha)) if mix else 0.0)
        return {self.page.mix_alpha: gr.Slider(interactive=usable(visit.session) and not each)}

    async def watch_documents(self, token: str, request: gr.Request) -> AsyncIterator[Updates]:
        visit, shown = self.visit(token, request), None
        visit.work()
        while True:
            working = visit.working
            now = cards.documents(visit)
            if now != shown:
                shown = now
                yield self.draw_documents(visit)
            if not working or visit.session.closed:
                break
            await asyncio.sleep(EVERY)

    # --- questions ---

    def ask(
        self, token: str, request: gr.Request, question: str, strategies: list[str], follow: bool
    ) -> Updates:
        visit = self.visit(token, request)
        if problem := self._problem(visit, question, strategies):
            return self._refusal(visit, problem)
        chosen = [name for name in STRATEGIES if name in strategies]
        visit.ask(clean_question(question), chosen, bool(follow))
        # the next question is taken for a new one, unless its asker says otherwise again
        return self.draw(visit, Drawn()) | {self.page.follow: gr.Checkbox(value=False, visible=bool(visit.turns))}

    def _refusal(self, visit: Visit, key: str) -> Updates:
        return {self.page.status: cards.notice("error", say(visit.language, key))}

    @staticmethod
    def _problem(visit: Visit, question: str, strategies: list[str]) -> str:
        """Why this cannot be asked now, as the key of a text; empty if it can."""
        if visit.answering:
            return "ask.busy"
        try:
            clean_question(question or "")
        except MemoError:
            return "ask.empty"
        if not strategies:
            return "ask.no_strategy"
        return "" if visit.ready or set(strategies) == {"closed_book"} else "ask.no_document"

    def again(self, token: str, request: gr.Request, own: str, *edits: Any) -> Updates:
        visit = self.visit(token, request)
        if visit.answering:
            return self._refusal(visit, "ask.busy")
        if visit.board is None or "memorag" not in visit.board.columns:
            return self._refusal(visit, "ask.empty")
        clues = list(self._chosen(visit.board, edits))
        if own and own.strip():
            clues.append(Clue(own.strip()[:500], "own"))
        visit.again(clues)
        return self.draw(visit, Drawn(clues=dict.fromkeys(range(CLUES), ())))

    @staticmethod
    def _chosen(board: Board, edits: tuple[Any, ...]) -> Any:
        """The clues that are switched on, as the person left them. One that was reworded is theirs."""
        for index, clue in enumerate(board.clues[:CLUES]):
            use, text = edits[2 * index], " ".join(str(edits[2 * index + 1] or "").split())[:500]
            if use and text:
                if text == " ".join(clue.text.split()):
                    yield clue
                else:  # a name leads on however it is written
                    yield replace(clue, text=text) if clue.kind == "name" else Clue(text, "own")

    async def watch_answers(self, token: str, request: gr.Request) -> AsyncIterator[Updates]:
        visit, drawn = self.visit(token, request), Drawn()
        board = visit.board
        if board is None or board.started:
            yield {self.page.status: gr.skip()}  # a generator that yields nothing would empty every component
            return
        visit.run()
        while board is visit.board:
            running = board.running
            if updates := self.draw(visit, drawn):
                yield updates
            if not running or visit.session.closed:
                break
            await asyncio.sleep(EVERY)

    def stop(self, strategy: str) -> Callable:
        def stop(token: str, request: gr.Request) -> Updates:
            self.visit(token, request).stop(strategy)
            return {}

        return stop

    def new_conversation(self, token: str, request: gr.Request) -> Updates:
        visit = self.visit(token, request)
        visit.new_conversation()
        return self.draw(visit, Drawn())

    def as_markdown(self, token: str, request: gr.Request) -> Updates:
        return {self.page.export: exports.as_markdown(self.visit(token, request))}

    def as_json(self, token: str, request: gr.Request) -> Updates:
        return {self.page.export: exports.as_json(self.visit(token, request))}
