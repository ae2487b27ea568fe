"""A question on the board: what is known of it so far, for everyone who draws it.

In: the pipeline's events. Out: the state of each answer, the clues, the passages; and a version number of each part, so
that only what has changed is drawn again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from memo.events import (
    Answer,
    AnswerDone,
    AnswerFailed,
    AnswerText,
    Clue,
    CluesRecalled,
    Event,
    Found,
    PassagesFound,
    Rewritten,
)  # fmt: skip
from memo.pipeline import Stop
from memo.sessions import Session

Phase = Literal["waiting", "recalling", "reading", "answering", "done", "stopped", "failed"]


class AskStop(Stop):
    """Ends with the session as well as on the person's wish."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def wanted(self, strategy: str = "") -> bool:
        return self._session.closed or super().wanted(strategy)


@dataclass
class Column:
    """One strategy's answer in the making."""

    strategy: str
    phase: Phase = "waiting"
    text: str = ""
    answer: Answer | None = None
    error: Exception | None = None

    @property
    def running(self) -> bool:
        return self.phase in ("waiting", "recalling", "reading", "answering")


@dataclass
class Board:
    """A question, its answers by strategy, and what they rest on."""

    question: str
    columns: dict[str, Column]
    stop: Stop
    history: Sequence[tuple[str, str]] = ()
    edited: tuple[Clue, ...] | None = None
    rewritten: str = ""
    clues: tuple[Clue, ...] = ()
    recalled: bool = False  # there will be no more clues
    passages: dict[str, tuple[Found, ...]] = field(default_factory=dict)
    started: bool = False
    running: bool = True
    error: Exception | None = None  # the whole comparison failed
    versions: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, question: str, strategies: Sequence[str], session: Session, history: Sequence) -> Board:
        columns = {name: Column(name) for name in strategies}
        return cls(question, columns, AskStop(session), history)

    def again(self, clues: Sequence[Clue], session: Session) -> None:
        """Makes ready for searching again by these clues: only MemoRAG's answer is made anew."""
        self.columns["memorag"] = Column("memorag")
        self.edited, self.stop, self.error = tuple(clues), AskStop(session), None
        self.started, self.running = False, True
        self.touch("status", "passages", "memorag")

    @property
    def wanted(self) -> list[str]:
        """The strategies still to be answered."""
        return [name for name, column in self.columns.items() if column.running]

    def touch(self, *parts: str) -> None:
        self.versions.update(parts)

    def apply(self, event: Event) -> None:
        """Takes in what the pipeline tells."""
        match event:
            case Rewritten(question):
                self.rewritten = question
                self.touch("status")
            case CluesRecalled(clues, final):
                if self.edited is None:  # else the person's own list stays as they left it
                    self.clues, self.recalled = clues, final
                self.touch("clues", "passages")
            case PassagesFound(strategy, passages):
                self.passages[strategy] = passages
                self.columns[strategy].phase = "reading"
                self.touch("passages", strategy)
            case AnswerText(strategy, text):
                self.columns[strategy].text, self.columns[strategy].phase = text, "answering"
                self.touch(strategy)
            case AnswerDone(strategy, answer):
                column = self.columns[strategy]
                column.text, column.answer = answer.text, answer
                column.phase = "stopped" if answer.stopped else "done"
                self.touch(strategy, "passages")
            case AnswerFailed(strategy, error):
                self.columns[strategy].error, self.columns[strategy].phase = error, "failed"
                self.touch(strategy)

    def begin(self) -> None:
        """The comparison has its turn at the models."""
        self.started = True
        for name in self.wanted:
            self.columns[name].phase = "recalling" if name == "memorag" and self.edited is None else "reading"
            self.touch(name)

    def settle(self, error: Exception | None = None) -> None:
        """No more events will come. Columns that are left over failed with the whole."""
        self.error, self.recalled = error, True
        for name in self.wanted:
            self.columns[name].phase = "failed" if error else "stopped"
            self.columns[name].error = error

    def end(self) -> None:
        """Everything is in its place, the conversation too."""
        self.running = False
        self.touch("status", "clues", "passages", "history", *self.columns)
