"""What the pipeline tells while it works: typed events, in the order things happen.

The pipeline yields them; the command line, the app and the notebooks only show them. Nothing here knows who is looking.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from memo.errors import MemoError

State = Literal["queued", "reading", "indexing", "memorizing", "studying", "ready", "failed"]


@dataclass(frozen=True)
class Source:
    """A stretch of a document: characters [start, end) of its text."""

    document: str
    start: int
    end: int
    weight: float = 1.0


@dataclass(frozen=True)
class Clue:
    """Something recalled from memory, or read where the question leads.

    kind: "span" (a stretch of text), "question" (a simpler question to look up), "draft" (an answer from memory),
    "key" (a key point), "name" (a name that leads on, see `memo.names`), "own" (written by the person).
    score: mean log-probability of its tokens (nats); of a name its strength.
    sources: where in the memory its tokens looked, strongest first; of a name the sentence it stands in.
    """

    text: str
    kind: str
    score: float = 0.0
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Found:
    """A passage that was found. score: similarity to what was looked up, weighted. found_by: "question", "memory"
    (where the question looked), or the texts of the clues and rewritten questions that found it."""

    document: str
    start: int
    end: int
    page: int | None
    text: str
    score: float
    found_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Citation:
    """Characters [start, end) of an answer are supported by `source`, which lies in passage number `passage`."""

    start: int
    end: int
    passage: int
    source: Source


@dataclass(frozen=True)
class Answer:
    """A finished answer and everything it rests on. timings: seconds from the asking."""

    question: str
    strategy: str
    text: str
    clues: tuple[Clue, ...] = ()
    passages: tuple[Found, ...] = ()
    citations: tuple[Citation, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    models: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what the reader should know: a text that was cut, documents left out
    stopped: bool = False


@dataclass(frozen=True)
class DocumentProgress:
    """A document on its way in. done, total: tokens while memorizing, passages while indexing, steps while studying."""

    name: str
    state: State
    document: str = ""
    done: int = 0
    total: int = 0
    slots: int = 0
    ratio: int = 0
    error: MemoError | None = None


@dataclass(frozen=True)
class Rewritten:
    """A follow-up question, made to stand alone."""

    question: str


@dataclass(frozen=True)
class CluesRecalled:
    """The clues so far; `final` when there will be no more."""

    clues: tuple[Clue, ...]
    final: bool


@dataclass(frozen=True)
class PassagesFound:
    strategy: str
    passages: tuple[Found, ...]


@dataclass(frozen=True)
class AnswerText:
    """The whole text of an answer so far."""

    strategy: str
    text: str


@dataclass(frozen=True)
class AnswerDone:
    strategy: str
    answer: Answer


@dataclass(frozen=True)
class AnswerFailed:
    strategy: str
    error: MemoError


Event = DocumentProgress | Rewritten | CluesRecalled | PassagesFound | AnswerText | AnswerDone | AnswerFailed
