"""The Ask page's handlers: what happens on a click, and what is drawn while the models work.

In: the components of `memo.ui.layout.Page` and the sessions. Out: wired events. Every handler takes the session's token
from the server's own state, and does nothing without it. Work is begun here and done elsewhere (`memo.ui.visits`); the
handlers that watch it are coroutines, so that waiting holds no thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import wraps
from inspect import isasyncgenfunction
from typing import Any

import gradio as gr

from memo.answers import STRATEGIES, clean_question
from memo.errors import MemoError
from memo.events import Clue
from memo.sessions import Sessions
from memo.ui import cards, exports, marks
from memo.ui.board import Board
from memo.ui.layout import CHIPS, CLUES, Example, Page, examples
from memo.ui.texts import language_of, say, tell
from memo.ui.visits import Visit
from memo.ui.warmup import Warmup

EVERY = 0.12  # seconds between two looks at the work
AT_ONCE = 4  # questions of different visitors that are answered at the same time; the model takes turns
UPLOADS = 8  # visitors whose documents are taken in at the same time
Updates = dict[Any, Any]

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


@dataclass
class Drawn:
    """What the page shows already, so that only changes are sent."""

    versions: dict[str, int] = field(default_factory=dict)
    clues: dict[int, tuple] = field(default_factory=dict)

    def outdated(self, board: Board, part: str) -> bool:
        version = board.versions[part]
        return self.versions.get(part) != version and (self.versions.__setitem__(part, version) or True)


class AskPage:
    """Handlers over one page layout. Holds nothing of any visitor."""

    def __init__(self, page: Page, sessions: Sessions, warmup: Warmup) -> None:
        self.page, self.sessions, self.warmup = page, sessions, warmup

    # --- wiring ---

    def wire(self) -> None:
        """Connects every component to its handler."""
        p, quick = self.page, {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        answering = {"concurrency_id": "ask", "concurrency_limit": AT_ONCE, "show_progress": "hidden"}
        answering["api_visibility"] = "private"
        reading = answering | {"concurrency_id": "documents", "concurrency_limit": UPLOADS}
        documents = [p.documents, p.status, p.delete_all, p.ratio, *p.chips]

        on = self.told
        p.files.upload(on(self.receive), [p.token, p.files], [p.files, *documents], **quick).then(
            on(self.watch_documents), p.token, documents, **reading
        )
        for button, example in zip(p.examples, examples(), strict=True):
            button.click(on(self.take_example(example)), p.token, documents, **quick).then(
                on(self.watch_documents), p.token, documents, **reading
            )
        p.documents.click(on(self.delete), p.token, documents, **quick).then(
            on(self.watch_documents), p.token, documents, **reading
        )
        p.ratio.input(on(self.change_ratio), [p.token, p.ratio], documents, **quick).then(
            on(self.watch_documents), p.token, documents, **reading
        )
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

    def everything(self) -> list[Any]:
        """What a question on the board draws on."""
        p = self.page
        rows = [part for row in p.clues for part in (row.row, row.use, row.text, row.origin)]
        columns = [part for column in p.answers.values() for part in (column.column, column.card, column.stop)]
        return [
            p.status, p.stop, p.clue_note, *rows, p.own, p.again, p.passages, p.answer_note, *columns, p.history, p.new,
            p.markdown, p.json, p.follow,
        ]  # fmt: skip

    def visit(self, token: object, request: gr.Request) -> Visit:
        """The visitor whose page this is; anyone else is told that the session has ended."""
        try:
            return Visit.of(self.sessions, token)
        except MemoError:
            raise Ended from None

    def told(self, handler: Callable) -> Callable:
        """The handler, which says below the question that the session has ended instead of failing."""

        def ended(request: gr.Request) -> Updates:
            return {self.page.status: cards.notice("error", say(language_of(request), "session.ended"))}

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
                return handler(token, request, *values)
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

    def delete(self, token: str, request: gr.Request, event: gr.EventData) -> Updates:
        visit = self.visit(token, request)
        data = event._data if isinstance(event._data, dict) else {}
        visit.delete(str(data.get("id", "")))
        return self.draw_documents(visit)

    def delete_all(self, token: str, request: gr.Request) -> Updates:
        visit = self.visit(token, request)
        visit.delete_all()
        return self.draw_documents(visit) | self.draw(visit, Drawn())

    def change_ratio(self, token: str, request: gr.Request, ratio: int) -> Updates:
        visit = self.visit(token, request)
        visit.change_ratio(ratio)
        return self.draw_documents(visit)

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

    def draw_documents(self, visit: Visit) -> Updates:
        """Cards, whether one can ask, and questions to begin with."""
        p = self.page
        example = next((e for e in examples() if e.title == visit.example), None)
        there = example is not None and any(
            row.name == example.path.name and row.state != "failed" for row in visit.rows.values()
        )
        questions = example.questions if example and there else ()
        chips = {
            p.chips[i]: gr.Button(value=questions[i] if i < len(questions) else "", visible=i < len(questions))
            for i in range(CHIPS)
        }
        return {
            p.documents: cards.documents(visit),
            p.delete_all: gr.Button(interactive=bool(visit.rows)),
            p.status: self.status(visit),
            **chips,
        }

    def status(self, visit: Visit) -> str:
        """One line below the question: what can be done now."""
        language, board = visit.language, visit.board
        if visit.problem:
            return cards.notice("error", say(language, visit.problem))
        if self.warmup.error:
            return cards.notice("error", tell(language, self.warmup.error))
        if not self.warmup.done:
            return cards.notice("busy", say(language, "status.warming"))
        if board is not None and board.running:
            asked = say(language, "status.rewritten", question=board.rewritten) if board.rewritten else ""
            key = "status.answering" if board.started else "status.waiting"
            return cards.notice("busy", f"{say(language, key)} {asked}".strip())
        if board is not None and board.error:
            return cards.notice("error", tell(language, board.error))
        if board is not None and board.rewritten:
            return cards.notice("ready", say(language, "status.rewritten", question=board.rewritten))
        if visit.ready:
            return cards.notice("ready", say(language, "status.ready"))
        return cards.notice("busy" if visit.working else "idle", say(language, "status.no_document"))

    # --- questions ---

    def ask(
        self, token: str, request: gr.Request, question: str, strategies: list[str], follow: bool
    ) -> Updates:
        visit = self.visit(token, request)
        visit.problem = self._problem(visit, question, strategies)
        if visit.problem:
            return {self.page.status: self.status(visit)}
        chosen = [name for name in STRATEGIES if name in strategies]
        visit.ask(clean_question(question), chosen, bool(follow))
        return self.draw(visit, Drawn())

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
        ours = visit.board is not None and "memorag" in visit.board.columns
        visit.problem = "ask.busy" if visit.answering else "" if ours else "ask.empty"
        if visit.problem or visit.board is None:
            return {self.page.status: self.status(visit)}
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
                yield clue if text == " ".join(clue.text.split()) else Clue(text, "own")

    async def watch_answers(self, token: str, request: gr.Request) -> AsyncIterator[Updates]:
        visit, drawn = self.visit(token, request), Drawn()
        board = visit.board
        if board is None or board.started:
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

    # --- drawing ---

    def draw(self, visit: Visit, drawn: Drawn) -> Updates:
        """What has changed on the board since `drawn`; all of it if that is new."""
        board = visit.board or Board.of("", (), visit.session, ())
        if visit.board is None:
            board.running, board.recalled = False, True
        p, updates = self.page, {}
        if drawn.outdated(board, "status"):
            updates |= {p.status: self.status(visit), p.stop: gr.Button(interactive=board.running)}
            updates[p.answer_note] = "" if board.columns else self._empty(visit, "answers.empty")
        if drawn.outdated(board, "clues"):
            updates |= self.draw_clues(visit, board, drawn)
        if drawn.outdated(board, "passages"):
            updates[p.passages] = marks.passages(visit)
        for name, column in p.answers.items():
            if drawn.outdated(board, name):
                updates |= self.draw_answer(visit, board, name, column)
        if drawn.outdated(board, "history"):
            some = gr.Button(interactive=bool(visit.turns))
            updates |= {p.history: cards.conversation(visit), p.new: some, p.markdown: some, p.json: some}
            updates[p.follow] = gr.Checkbox(visible=bool(visit.turns))
        return updates

    @staticmethod
    def _empty(visit: Visit, key: str) -> str:
        return f'<p class="empty">{marks.esc(say(visit.language, key))}</p>'

    @staticmethod
    def draw_answer(visit: Visit, board: Board, name: str, column: Any) -> Updates:
        state = board.columns.get(name)
        if state is None:
            return {column.column: gr.Column(visible=False)}
        return {
            column.column: gr.Column(visible=True),
            column.card: cards.answer(visit, state),
            column.stop: gr.Button(visible=state.running),
        }

    def draw_clues(self, visit: Visit, board: Board, drawn: Drawn) -> Updates:
        p, language = self.page, visit.language
        ours = "memorag" in board.columns
        if not board.columns:
            note = self._empty(visit, "clues.empty")
        elif not ours:
            note = self._empty(visit, "clues.not_chosen")
        elif not board.recalled:
            note = cards.notice("busy", say(language, "clues.recalling"))
        else:
            note = self._empty(visit, "clues.done" if board.clues else "clues.none")
        editing = ours and board.recalled
        updates: Updates = {p.clue_note: note, p.again: gr.Button(visible=editing)}
        if board.edited is None:
            updates[p.own] = gr.Textbox(visible=editing, value="")
            for index in range(CLUES):
                updates |= self._draw_clue(visit, board, index, drawn)
        return updates

    def _draw_clue(self, visit: Visit, board: Board, index: int, drawn: Drawn) -> Updates:
        row = self.page.clues[index]
        clue = board.clues[index] if index < len(board.clues) else None
        now = (clue.text, clue.score, len(clue.sources), board.recalled) if clue else (None,)
        if drawn.clues.get(index) == now:
            return {}
        drawn.clues[index] = now
        if clue is None:
            return {row.row: gr.Row(visible=False), row.use: True}
        return {
            row.row: gr.Row(visible=True),
            row.use: gr.Checkbox(value=True, interactive=board.recalled),
            row.text: gr.Textbox(value=clue.text, interactive=board.recalled),
            row.origin: cards.clue_origin(visit, clue, index + 1),
        }
