"""What a visitor's weights are trained on: the text of their documents, or lessons made of them.

In: a session, the reader that is trained, questions that the visitor brought. Out: a `Course`; lessons, and what was
thrown away of those that the generator wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memo.documents import Document
from memo.errors import MemoError, TooLittleText
from memo.sessions import Session
from memo.ui.learning import Texts
from memo.ui.questions import Question

if TYPE_CHECKING:
    from memo.memory import MemoryModel
    from memo.train.lessons import Lesson
    from memo.train.own import Course

WINDOW = 128  # tokens read at a time on a CPU: a step then takes seconds
MOST = 100_000  # tokens of the documents that are read at most
STRETCHES = 12  # of the documents that lessons are written about at most
ASKED = 3  # questions about each


def documents(session: Session) -> list[Document]:
    """The visitor's documents."""
    library = session.rag.library
    return [Document(entry.id, entry.name, library.text(entry.id)) for entry in list(library.documents.values())]


def reading(session: Session, reader: MemoryModel, folder: Path, steps: int, rate: float) -> Course:
    """Pre-training on the documents. folder: for their tokens.

    Raises:
        TooLittleText: they do not fill it.
    """
    from memo.train import own, texts

    library, window = session.rag.library, session.settings.window
    if not library.documents:
        raise TooLittleText("There is too little text to train on.", own.LITTLE)
    sources = [Texts(library, tuple(library.documents), MOST)]
    key = texts.key_of(reader.tokenizer)
    tokens = texts.tokenize(sources, lambda text: reader.encode(text)[0], key, folder)  # type: ignore[arg-type]
    window = min(window, WINDOW) if reader.device.type == "cpu" else window
    return own.reading(reader, tokens, steps, rate, window)


def of_questions(session: Session, reader: MemoryModel, questions: Sequence[Question]) -> list[Lesson]:
    """Lessons of questions with answers, where these stand in the documents."""
    from memo.train import own

    pairs = [(one.text, one.answers) for one in questions]
    return own.of_pairs(pairs, documents(session), lambda text: reader.encode(text, start=False)[1])


def written(
    session: Session, reader: MemoryModel, told: Callable[[int, int], None], go_on: Callable[[], None]
) -> tuple[list[Lesson], Counter[str]]:
    """Lessons that the generator writes about stretches of the documents, as `memo train synthesize` does.

    told: hears how many stretches are done, of how many. go_on: what it raises ends it. -> lessons; what was thrown
    away, and why
    """
    from memo.models import untrusted
    from memo.passages import split
    from memo.train import own, synthesis

    engine = untrusted(reader.tokenizer)
    every = [passage.text for one in documents(session) for passage in split(one, engine, own.STRETCH)]
    stretches = every[:: -(-len(every) // STRETCHES) or 1]
    generator, found, thrown = Heeding(session.rag.models.generator(), go_on), [], Counter[str]()
    for number, stretch in enumerate(stretches):
        told(number, len(stretches))
        made, bad = synthesis.lesson(stretch, generator, ASKED)  # type: ignore[arg-type]
        thrown += bad
        found += [made] if made else []
    return found, thrown


class Heeding:
    """A generator whose writing ends when `go_on` raises."""

    def __init__(self, generator: Any, go_on: Callable[[], None]) -> None:
        self.generator, self.go_on = generator, go_on

    def open(self) -> HeedingRun:
        return HeedingRun(self.generator.open(), self.go_on)


class HeedingRun:
    """One run of it."""

    def __init__(self, run: Any, go_on: Callable[[], None]) -> None:
        self.run, self.go_on = run, go_on
        self.add, self.close = run.add, run.close

    def step(self) -> bool:
        try:
            self.go_on()
        except MemoError:
            self.close()
            raise
        return self.run.step()
