"""What the page shows: a visit as updates of the components.

In: a `Visit`. Out: for every component that has to change its new value, and nothing for the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from memo.ui import cards, marks
from memo.ui.board import Board
from memo.ui.decoding import routed, usable
from memo.ui.layout import CHIPS, CLUES, Page, examples
from memo.ui.texts import say, tell
from memo.ui.visits import Visit
from memo.ui.warmup import Warmup

Updates = dict[Any, Any]


@dataclass
class Drawn:
    """What the page shows already, so that only changes are sent."""

    versions: dict[str, int] = field(default_factory=dict)
    clues: dict[int, tuple] = field(default_factory=dict)

    def outdated(self, board: Board, part: str) -> bool:
        """Whether a part has to be drawn; it then counts as drawn."""
        before, self.versions[part] = self.versions.get(part), board.versions[part]
        return before != self.versions[part]


class Painter:
    """Draws visits on one page layout."""

    def __init__(self, page: Page, warmup: Warmup) -> None:
        self.page, self.warmup = page, warmup

    def everything(self) -> list[Any]:
        """What a question on the board draws on."""
        p = self.page
        rows = [part for row in p.clues for part in (row.row, row.use, row.text, row.origin)]
        columns = [part for column in p.answers.values() for part in (column.column, column.card, column.stop)]
        return [
            p.status, p.stop, p.clue_note, *rows, p.own, p.again, p.passages, p.answer_note, *columns, p.history, p.new,
            p.markdown, p.json, p.follow,
        ]  # fmt: skip

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
            **self.draw_mix(visit),
        }

    def draw_mix(self, visit: Visit) -> Updates:
        """The Memory Decoder's switch, which can be used where there is one."""
        there = usable(visit.session)
        mix = gr.Checkbox(interactive=True) if there else gr.Checkbox(value=False, interactive=False)
        return {self.page.mix: mix, self.page.mix_each: gr.Checkbox(visible=routed(visit.session)),
                self.page.mix_alpha: gr.Slider(interactive=there)}  # fmt: skip

    def status(self, visit: Visit) -> str:
        """One line below the question: what can be done now."""
        language, board = visit.language, visit.board
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
