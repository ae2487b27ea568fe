"""One visitor's page: the documents on their way in, the question on the board, the conversation.

In: uploads and questions of a `memo.sessions.Session`. Out: rows, a board and turns to draw. The work is done in
threads of its own, never in the page's request: a page that is left in the middle leaves no lock held.
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from memo.documents import Document, clean_name, read_document
from memo.errors import Cancelled, DocumentError, LimitReached, MemoError
from memo.events import Answer, Clue, DocumentProgress
from memo.library import Entry
from memo.pipeline import Stop
from memo.sessions import Session, Sessions
from memo.train.recipe import Studying
from memo.ui.board import Board
from memo.ui.decoding import Decoding, usable
from memo.ui.learning import Learning
from memo.ui.looking import Looking
from memo.ui.questions import Evaluation
from memo.ui.training import Training

INCOMING = "incoming"  # the folder of files that wait to be read, in the session's own
WAITING = 2  # times as many files may wait as there may be documents


@dataclass
class Row:
    """A file on its way in, or a document that is ready."""

    name: str
    key: str = field(default_factory=lambda: secrets.token_hex(6))
    state: str = "queued"  # queued, reading, indexing, memorizing, studying, ready, failed
    path: Path | None = None  # until it is read
    document: Document | None = None
    done: int = 0
    total: int = 0
    slots: int = 0
    ratio: int = 0
    wanted: int = 0  # the ratio asked for; 0: the settings'
    error: Exception | None = None
    entry: Entry | None = None
    again: bool = False  # interrupted, to be memorized or studied from its beginning
    study: bool = False  # to be studied, not read
    studied: bool = False


@dataclass
class Turn:
    """A question of the conversation and what was answered."""

    question: str
    asked: str  # the question as it was searched, where a follow-up was made to stand alone
    answers: dict[str, Answer]

    @property
    def main(self) -> Answer:
        return self.answers.get("memorag") or next(iter(self.answers.values()))


class Visit:
    """What one visitor sees. Kept on the session, so it ends with it."""

    def __init__(self, session: Session, language: str) -> None:
        self.session, self.language = session, language
        self.rows: dict[str, Row] = {}
        self.board: Board | None = None
        self.turns: list[Turn] = []
        self.ratio = session.settings.ratio
        self.alpha = 0.0  # the Memory Decoder's share in answers
        self.decoding, self.learning = Decoding(session), Learning(session)
        self.looking = Looking(session)
        self.testing = Evaluation(session)
        self.training = Training(session)
        self.example = ""  # the example put in last, whose questions are suggested
        self._lock = threading.RLock()
        self._worker: threading.Thread | None = None
        self._current: Row | None = None

    @staticmethod
    def of(sessions: Sessions, token: object) -> Visit:
        """The visit of a session's token.

        Raises:
            LimitReached: there is no such session, or it has ended.
        """
        visit = sessions.get(token).view
        if not isinstance(visit, Visit):
            raise LimitReached("This session has ended.", "Reload the page to begin a new one.")
        return visit

    # --- documents ---

    @property
    def working(self) -> bool:
        return self._worker is not None and self._worker.is_alive()

    @property
    def ready(self) -> bool:
        """Whether there is something to ask about."""
        return bool(self.session.rag.library.documents)

    @property
    def answering(self) -> bool:
        return self.board is not None and self.board.running and self.board.started

    def receive(self, paths: Sequence[str | Path], example: bool = False) -> None:
        """Takes files in. An upload is taken out of the web server's folder at once: other visitors who upload the
        same file get the same path there."""
        for path in map(Path, paths):
            row = Row(clean_name(path.name), wanted=self.ratio)
            try:
                self._room()
                row.path = path if example else self._move(path, row.key)
            except MemoError as error:
                row.state, row.error = "failed", error
            except OSError:
                row.state = "failed"
                row.error = DocumentError(f"{row.name} did not arrive.", "Choose it again.")
            if not example:
                path.unlink(missing_ok=True)
            with self._lock:
                self.rows[row.key] = row

    def _move(self, path: Path, key: str) -> Path:
        """From the web server's folder into the session's own."""
        place = self.session.rag.library.root / INCOMING
        place.mkdir(exist_ok=True)
        return Path(shutil.move(path, place / key))

    def _room(self) -> None:
        waiting = sum(row.path is not None for row in self.rows.values())
        if waiting >= WAITING * self.session.settings.max_documents:
            raise LimitReached(f"There are {waiting} files waiting already.", "Add this one when they are done.")

    def work(self) -> None:
        """Begins to read and memorize what is queued, unless that is under way."""
        with self._lock:
            if not self.working and any(row.state == "queued" for row in self.rows.values()):
                self._worker = threading.Thread(target=self._work, daemon=True, name="memo-documents")
                self._worker.start()

    def _work(self) -> None:
        while not self.session.closed:
            with self._lock:
                self._current = next((row for row in self.rows.values() if row.state == "queued"), None)
                if self._current is None:
                    self._worker = None
                    return
                row = self._current
                row.state = "studying" if row.study else "reading"
            try:
                self._study(row) if row.study else self._take_in(row)
            except Exception as error:
                row.state, row.error = "failed", error

    def _take_in(self, row: Row) -> None:
        settings = self.session.settings
        if row.path is not None:
            try:
                row.document = read_document(row.path, name=row.name, **settings.file_limits)
            finally:
                self._drop(row)
        assert row.document is not None
        with self._lock:
            for key in [k for k, r in self.rows.items() if r is not row and self._same(r, row)]:
                del self.rows[key]
        self.session.stop = Stop()
        self._follow(row, self.session.memorize([row.document], row.wanted or None))
        row.studied = row.studied and row.state != "ready"

    def _study(self, row: Row) -> None:
        """Trains a document's memory; what goes wrong leaves the document as it was."""
        assert row.entry is not None
        self.session.stop = Stop()
        try:
            self._follow(row, self.session.study(row.entry.id, Studying()))
            row.studied = row.studied or (row.state == "ready" and row.error is None)
            if isinstance(row.error, Cancelled):
                row.error = None
        except MemoError as error:
            row.state, row.error = "ready", error
        row.study = row.state == "queued"

    def _follow(self, row: Row, steps: Iterator[DocumentProgress]) -> None:
        """Shows how far a document is; one that was deleted meanwhile goes, one that was interrupted begins again."""
        for progress in steps:
            if row.key not in self.rows:
                self.session.stop.all()
            self._show(row, progress)
        if row.again:
            row.again, row.state = False, "queued"
        if row.key not in self.rows and row.document and row.document.id in self.session.rag.library.documents:
            self.session.forget(row.document.id)

    @staticmethod
    def _drop(row: Row) -> None:
        """Deletes the file that was waiting, unless it is an example's."""
        if row.path is not None and row.path.parent.name == INCOMING:
            row.path.unlink(missing_ok=True)
        row.path = None

    @staticmethod
    def _same(one: Row, other: Row) -> bool:
        return one.document is not None and other.document is not None and one.document.id == other.document.id

    def _show(self, row: Row, progress: DocumentProgress) -> None:
        if progress.state == "failed" and row.again:
            return
        row.done, row.total = progress.done, progress.total
        row.slots, row.ratio, row.error = progress.slots, progress.ratio, progress.error
        row.entry = self.session.rag.library.documents.get(progress.document)
        row.state = progress.state

    def study(self, key: str) -> None:
        """Has a document that is ready studied harder; if it is being studied, stops that."""
        with self._lock:
            row = self.rows.get(key)
            if row is not None and row.state == "ready":
                row.state, row.study, row.done, row.error = "queued", True, 0, None
            elif row is not None and row.study and row.state == "queued":
                row.state, row.study = "ready", False
            elif row is not None and row is self._current and row.state == "studying":
                self.session.stop.all()

    def delete(self, key: str) -> None:
        """Takes a document out for good, whatever state it is in."""
        with self._lock:
            row = self.rows.pop(key, None)
            current = self._current if self.working else None
        if row is None:
            return
        self._drop(row)
        if row.entry is not None:
            self._unlearn(row.entry.id)
        if row is current:
            self.session.stop.all()  # the worker ends at the next window and leaves nothing behind
        elif row.entry is not None:
            self._interrupt(current)
            self.session.forget(row.entry.id)

    def _unlearn(self, document: str = "") -> None:
        """What learnt a document goes with it, a decoder and weights, and what was found inside its memory."""
        self.looking.forget(document)
        self.training.forget(document)
        if self.learning.forget(document):
            self.decoding.clear()
            self.mix(self.alpha)

    def mix(self, alpha: float) -> None:
        """Mixes the Memory Decoder into the answers, if there is one. alpha: its share, 0 to 1."""
        self.alpha = alpha if usable(self.session) else 0.0

    def _interrupt(self, current: Row | None) -> None:
        """Lets a deletion pass a long reading, which then begins again."""
        if current is not None and current.state in ("indexing", "memorizing", "studying"):
            current.again = True
            self.session.stop.all()

    def delete_all(self) -> None:
        """Documents, answers and conversation."""
        if self.board:
            self.board.stop.all()
        with self._lock:
            rows = list(self.rows.values())
            self.rows.clear()
        for row in rows:
            self._drop(row)
        self.session.stop.all()
        for document in list(self.session.rag.library.documents):
            self.session.forget(document)
        self.example = ""
        self._unlearn()
        self.decoding.clear()
        self.testing.clear()
        self.new_conversation()

    def change_ratio(self, ratio: int) -> None:
        """Documents are read again at another ratio."""
        self.ratio = ratio
        with self._lock:
            for row in self.rows.values():
                row.wanted = ratio
                if row.state == "ready" and row.document is not None:
                    row.state, row.study = "queued", False

    def place(self, document: str, offset: int) -> tuple[str, int | None, float]:
        """Name, page and relative place (0 to 1) of a character of a document."""
        for row in self.rows.values():
            if row.document is not None and row.document.id == document:
                return row.name, row.document.page_of(offset), offset / max(1, len(row.document.text))
        return "", None, 0.0

    def text_of(self, document: str, start: int, end: int) -> str:
        """Characters of a document; empty once it is deleted."""
        for row in self.rows.values():
            if row.document is not None and row.document.id == document:
                return row.document.text[start:end]
        return ""

    # --- questions ---

    def ask(self, question: str, strategies: Sequence[str], follow: bool) -> Board:
        """Puts a question on the board; `run` answers it."""
        self.board = Board.of(question, strategies, self.session, tuple(self.session.history) if follow else ())
        return self.board

    def again(self, clues: Sequence[Clue]) -> None:
        """Puts the question on the board again, to be searched by these clues."""
        if self.board is not None:
            self.board.again(clues, self.session)

    def run(self) -> None:
        """Answers the question on the board, in the background."""
        board = self.board
        if board is not None and not board.started:
            board.begin()
            threading.Thread(target=self._answer, args=(board,), daemon=True, name="memo-ask").start()

    def _answer(self, board: Board) -> None:
        question, history = (board.question, board.history) if board.edited is None else (self._asked(board), ())
        try:
            compare = self.session.rag.compare
            for event in compare(question, board.wanted, history, board.edited, board.stop, self.alpha):
                self.session.used = time.monotonic()
                board.apply(event)
            board.settle()
        except Exception as error:
            board.settle(error)
        if self.board is board:  # else everything was deleted meanwhile
            self._remember(board)
        board.end()

    @staticmethod
    def _asked(board: Board) -> str:
        return board.rewritten or board.question

    def _remember(self, board: Board) -> None:
        answers = {name: column.answer for name, column in board.columns.items() if column.answer}
        if not answers:
            return
        turn = Turn(board.question, self._asked(board), answers)
        if board.edited is not None and self.turns:
            self.turns[-1] = turn
        else:
            self.turns.append(turn)
        self.session.history = [(t.question, t.main.text) for t in self.turns if t.main.text]

    def stop(self, strategy: str = "") -> None:
        """Stops one answer, or all."""
        if self.board is not None:
            self.board.stop.one(strategy) if strategy else self.board.stop.all()

    def new_conversation(self) -> None:
        """Forgets questions and answers; the documents stay."""
        if self.board is not None:
            self.board.stop.all()
        self.board, self.turns, self.session.history = None, [], []
