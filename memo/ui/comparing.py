"""A visitor's questions, asked with the shipped memory weights and with their own, side by side.

In: a session, two kinds of models with memories of the same documents, questions. Out: `Compared`, one for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memo.answers import relevant
from memo.models import Models
from memo.sessions import Session
from memo.ui import coursework
from memo.ui.exchange import Shelf, Told
from memo.ui.questions import Question

if TYPE_CHECKING:
    from memo.evaluate.beside import Put
    from memo.evaluate.beside import Told as Answered
    from memo.memory import Memory

MOST = 12  # questions that are compared


@dataclass(frozen=True)
class Compared:
    """A question, and what is made of it before and after."""

    question: str
    before: Answered
    after: Answered


def memory_of(session: Session, models: Models, shelf: Shelf, told: Told) -> Memory:
    """The memories of all documents: the library's own where these are its models, else the shelf's, which is filled.

    told: hears tokens read, of how many; what it raises ends it.
    """
    from memo import memory_file
    from memo.memory import Memory

    library, reader = session.rag.library, models.memory_model()
    if models is session.rag.models:
        return library.memory(reader)
    shelf.fill(library, reader, session.settings.window, told)
    memory = Memory(reader)
    for entry in list(library.documents.values()):
        if shelf.path(entry).exists():
            memory.add(memory_file.load(shelf.path(entry), reader))
    return memory


def compare(
    session: Session, memories: Sequence[Memory], questions: Sequence[Question], told: Told
) -> list[Compared]:
    """Asks. memories: before and after. told: hears how many answers are there, of how many; what it raises ends it."""
    from memo.evaluate import beside

    questions, of, sides = questions[:MOST], 2 * len(questions[:MOST]), []
    for memory in memories:
        every = [_put(session, memory, question) for question in questions]
        before = sum(map(len, sides))
        tokens = session.settings.answer_tokens
        sides.append(beside.ask(memory.model, every, tokens, lambda done, before=before: told(before + done, of)))
    return [Compared(one.text, *both) for one, *both in zip(questions, *sides, strict=True)]


def _put(session: Session, memory: Memory, question: Question) -> Put:
    from memo.evaluate.beside import Put

    slots = memory.compose(relevant(session.rag.library, question.text)).slots
    placed = coursework.of_questions(session, memory.model, [question])
    sentence = placed[0].questions[0].clues["span"][0] if placed else ""
    return Put(slots, question.text, question.answers, sentence)
