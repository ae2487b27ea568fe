"""MemoRAG, end to end: memorize documents, ask, compare, forget. Knows nothing of who is looking.

In: files and questions. Out: events (`memo.events`), in the order things happen. All strategies of a comparison advance
together: whatever prompts they want next join one running batch, so their answers stream side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from memo import clues as recall
from memo.answers import QUESTION_TOKENS, STRATEGIES, Ask, Steps, clean_question, stand_alone
from memo.cite import cite
from memo.errors import Cancelled, MemoError, NothingToAsk, SettingsError
from memo.events import (
    Answer,
    AnswerDone,
    AnswerFailed,
    AnswerText,
    Clue,
    CluesRecalled,
    DocumentProgress,
    Event,
    PassagesFound,
    Rewritten,
    State,
)  # fmt: skip
from memo.generate import Generator, Prompt, Run, Stream
from memo.library import Library, text_hash
from memo.log import note
from memo.models import Models
from memo.settings import Settings, from_environment

if TYPE_CHECKING:
    from memo.documents import Document
    from memo.mixing import Mixing
    from memo.train.recipe import Studying


class Stop:
    """A person's wish to end: everything, or one strategy's answer. May be set from any thread."""

    def __init__(self) -> None:
        self._all, self._some = False, set[str]()

    def all(self) -> None:
        self._all = True

    def one(self, strategy: str) -> None:
        self._some.add(strategy)

    def wanted(self, strategy: str = "") -> bool:
        return self._all or strategy in self._some


@dataclass
class _Task:
    """A strategy at work: what it waits for, and what came of it."""

    ask: Ask
    steps: Steps
    alpha: float = 0.0
    mixing: Mixing | None = None
    streams: list[Stream] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    shown: str = ""
    answering: bool = False
    extra: int = 0  # prompt tokens of the steps before the answer


class MemoRAG:
    """One library and the models, as verbs."""

    def __init__(self, library: Library, models: Models, settings: Settings) -> None:
        self.library, self.models, self.settings = library, models, settings
        self.mixing: Mixing | None = None  # a Memory Decoder of this library's own, in place of the models'

    # --- documents ---

    def memorize(
        self, documents: Iterable[Document | str | Path], ratio: int | None = None, stop: Stop | None = None
    ) -> Iterator[DocumentProgress]:
        """Reads, indexes and memorizes files or documents one after another. One that fails leaves nothing behind; the
        others go on. One that is there already, at the same ratio, is ready at once."""
        from memo.documents import clean_name

        stop = stop or Stop()
        for document in documents:
            is_file = isinstance(document, str | Path)
            name, known = (clean_name(Path(document).name), "") if is_file else (document.name, document.id)
            try:
                self._continue(stop)
                if is_file:
                    yield DocumentProgress(name, "reading")
                    document = self.read(document)
                    name, known = document.name, document.id
                yield from self._memorize(document, ratio or self.settings.ratio, stop)
            except MemoError as error:
                yield DocumentProgress(name, "failed", known, error=error)
            except OSError as error:  # no space left, say
                told = f"{name} could not be stored: {error.strerror or error}."
                yield DocumentProgress(name, "failed", known, error=MemoError(told, "Make room, then try again."))

    def read(self, path: str | Path) -> Document:
        """A file as a document, within the limits of the settings. Raises a DocumentError."""
        from memo.documents import read_document

        return read_document(path, **self.settings.file_limits)

    def _memorize(self, document: Document, ratio: int, stop: Stop) -> Iterator[DocumentProgress]:
        from memo.memory import DocumentMemory, Reading
        from memo.passages import split

        known = self.library.documents.get(document.id)
        model = self.models.memory_model()
        wanted = model.fitting_ratio(len(model.encode(document.text)[0]), ratio, self.settings.window)
        if known and known.ratio == wanted and self.usable(document.id):
            yield DocumentProgress(
                document.name, "ready", document.id, known.tokens, known.tokens, known.slots, known.ratio
            )
            return
        began = time.monotonic()
        embedder = self.models.embedder()
        passages = split(document, embedder.tokenizer, min(self.settings.passage_tokens, embedder.max_tokens - 2))
        with self.library.making(document.id) as path:
            yield DocumentProgress(document.name, "indexing", document.id, 0, len(passages))
            for done in self.library.add_passages(document.id, passages):
                self._continue(stop)
                yield DocumentProgress(document.name, "indexing", document.id, done, len(passages))
            memory = None
            steps = model.memorize(
                document.text, document.id, ratio, self.settings.window, text_sha256=text_hash(document.text)
            )
            for step in steps:
                self._continue(stop)
                if isinstance(step, Reading):
                    yield DocumentProgress(
                        document.name, "memorizing", document.id, step.done, step.total, step.slots, step.ratio
                    )
                else:
                    memory = step
            assert isinstance(memory, DocumentMemory)
            entry = self.library.commit(path, document, passages, memory, time.monotonic() - began)
        yield DocumentProgress(
            document.name, "ready", document.id, entry.tokens, entry.tokens, entry.slots, entry.ratio
        )

    def study(self, name: str, plan: Studying, stop: Stop | None = None) -> Iterator[DocumentProgress]:
        """Trains the memory of one document (by id or name) on its text, so that it keeps more of it; see train.study.

        Stopping leaves the memory as it was: it is "ready" again, with `Cancelled` as error.

        Raises:
            UnknownDocument: there is no such document. DamagedMemory, WrongModel: its memory cannot be used.
        """
        from memo.train.study import Lap, study

        entry, stop, model = self.library.find(name), stop or Stop(), self.models.memory_model()
        memory = self.library.load(entry.id, model)

        def told(state: State, done: int, error: MemoError | None = None) -> DocumentProgress:
            return DocumentProgress(entry.name, state, entry.id, done, plan.steps, entry.slots, entry.ratio, error)

        try:
            for step in study(model, memory, self.library.text(entry.id), plan):
                self._continue(stop)
                if isinstance(step, Lap):
                    yield told("studying", step.step)
                else:
                    self.library.replace_memory(step)
            yield told("ready", plan.steps)
        except Cancelled as error:
            yield told("ready", 0, error)

    def usable(self, document: str) -> bool:
        """Whether the stored memory of a document can be loaded by the models of today."""
        with suppress(MemoError):
            self.library.load(document, self.models.memory_model())
            return True
        return False

    @staticmethod
    def _continue(stop: Stop) -> None:
        if stop.wanted():
            raise Cancelled("Stopped.")

    def forget(self, name: str) -> str:
        """Takes a document (by id or name) out of the library. Returns its id.

        Raises:
            UnknownDocument: there is no such document.
        """
        entry = self.library.find(name)
        self.library.remove(entry.id)
        return entry.id

    # --- questions ---

    def ask(
        self, question: str, strategy: str = "memorag", history: Sequence[tuple[str, str]] = (),
        clues: Sequence[Clue] | None = None, stop: Stop | None = None, alpha: float = 0.0,
    ) -> Iterator[Event]:  # fmt: skip
        """Answers a question by one strategy; yields events, last `AnswerDone` or `AnswerFailed`."""
        yield from self.compare(question, (strategy,), history, clues, stop, alpha)

    def compare(
        self, question: str, strategies: Sequence[str], history: Sequence[tuple[str, str]] = (),
        clues: Sequence[Clue] | None = None, stop: Stop | None = None, alpha: float = 0.0,
    ) -> Iterator[Event]:  # fmt: skip
        """Answers a question by several strategies at once, in one batch.

        history: earlier (question, answer) pairs, oldest first. clues: in place of recalling, the clues to search by.
        alpha: how much of the Memory Decoder is mixed into the answers, 0 to 1, or `decoder.ROUTED`.

        Raises:
            NothingToAsk: no question, or no document in the library; SettingsError: an unknown strategy.
        """
        question, stop = clean_question(question), stop or Stop()
        if self.models.generator().count(question) > QUESTION_TOKENS:
            raise NothingToAsk("The question is too long.", "Put long texts in as documents.")
        for strategy in strategies:
            if strategy not in STRATEGIES:
                raise SettingsError(f"No strategy is named {strategy!r}.", f"Choose from: {', '.join(STRATEGIES)}.")
        if not self.library.documents and set(strategies) != {"closed_book"}:
            raise NothingToAsk("There is no document to ask about yet.", "Add one first.")
        if self.library.documents:
            self.models.embedder()
        mixing = (self.mixing or self.models.mixing()) if alpha else None
        began, runs = time.monotonic(), Runs(self.models)  # the models are loaded: what follows is the question's time
        try:
            asked = question
            if history:
                asked = yield from self._stand_alone(question, history, runs, stop)
            tasks = {
                name: _Task(ask := self._new_ask(asked, name, clues), STRATEGIES[name](ask), alpha, mixing)
                for name in dict.fromkeys(strategies)
            }
            yield from self._work(tasks, runs, stop, began)
        finally:
            runs.close()

    def _new_ask(self, question: str, strategy: str, clues: Sequence[Clue] | None) -> Ask:
        edited = tuple(clues) if clues is not None else None
        generator = self.models.generator()
        return Ask(question, strategy, self.settings, self.library, generator, self.models.memory_model, edited)

    @staticmethod
    def _stand_alone(
        question: str, history: Sequence[tuple[str, str]], runs: Runs, stop: Stop
    ) -> Iterator[Event]:  # returns the question
        stream = runs.add(stand_alone(question, history))
        while runs.step():
            if stop.wanted():
                stream.stop()
        rewritten = " ".join(stream.text.strip().split("\n")[0].split()).removeprefix("Question:").strip()
        if stream.error or len(rewritten) < 8 or ("?" not in rewritten and "?" in question):
            rewritten = f"(After: {history[-1][0].rstrip('?？ ')}.) {question}"  # no question came: both, then
        yield Rewritten(rewritten)
        return rewritten

    def _work(self, tasks: dict[str, _Task], runs: Runs, stop: Stop, began: float) -> Iterator[Event]:
        for name in list(tasks):
            yield from self._advance(name, tasks, None, runs, began)
        clue_texts = 0
        while tasks:
            for name, task in tasks.items():
                if stop.wanted(name):
                    for stream in task.streams:
                        stream.stop()
            runs.step()
            for name, task in list(tasks.items()):
                if not task.answering and name == "memorag" and task.ask.edited is None:
                    size = sum(len(s.text) for s in task.streams)
                    if size != clue_texts and task.ask.memory is not None:
                        clue_texts = size
                        kinds = dict(zip(recall.KINDS, task.streams, strict=False))
                        if found := recall.collect(kinds, task.ask.question, None):
                            task.timings.setdefault("first_clue", time.monotonic() - began)
                            yield CluesRecalled(found, final=False)
                if task.answering and task.streams[0].text != task.shown:
                    task.shown = task.streams[0].text
                    task.timings.setdefault("first_token", time.monotonic() - began)
                    yield AnswerText(name, task.shown)
                if all(stream.done for stream in task.streams):
                    yield from self._advance(name, tasks, task.streams, runs, began)

    def _advance(
        self, name: str, tasks: dict[str, _Task], streams: list[Stream] | None, runs: Runs, began: float
    ) -> Iterator[Event]:
        """Gives a strategy what it waited for, and takes what it wants next; at its end, its answer."""
        task = tasks[name]
        try:
            for stream in streams or []:
                if stream.error:
                    raise stream.error
            if task.answering:
                tasks.pop(name)
                answer = self._answer(task, time.monotonic() - began)
                note("answered", strategy=name, seconds=answer.timings["total"], tokens=answer.answer_tokens)
                yield AnswerDone(name, answer)
                return
            task.extra += sum(stream.prompt_tokens for stream in task.streams)
            item = task.steps.send(streams)  # type: ignore[arg-type]
            while not isinstance(item, list | Prompt):
                moment = {CluesRecalled: "clues", PassagesFound: "passages"}[type(item)]
                task.timings[moment] = time.monotonic() - began
                yield item
                item = next(task.steps)
            task.answering = isinstance(item, Prompt)
            if isinstance(item, Prompt) and task.mixing is not None:
                share = f"{task.alpha:g}" if task.alpha >= 0 else "its own for every word"
                task.ask.notes.append(f"The Memory Decoder has a share of {share} in this answer.")
                item = replace(item, alpha=task.alpha, mixing=task.mixing)
            wanted = [item] if isinstance(item, Prompt) else item
            task.streams = [runs.add(prompt) for prompt in wanted]
        except MemoError as error:
            tasks.pop(name, None)
            for stream in task.streams:
                stream.stop()
            note("not answered", strategy=name, error=type(error).__name__)
            yield AnswerFailed(name, error)

    def _answer(self, task: _Task, seconds: float) -> Answer:
        [stream], ask = task.streams, task.ask
        text = stream.text.strip()
        timings = {moment: round(value, 3) for moment, value in (task.timings | {"total": seconds}).items()}
        return Answer(
            ask.question, ask.strategy, text, ask.clues, ask.passages, cite(text, ask.passages), timings,
            stream.prompt_tokens + task.extra, stream.tokens, self.models.names(), tuple(ask.notes), stream.stopped,
        )  # fmt: skip


class Runs:
    """The generator's run, and the memory model's where that is another one: a prompt with slots goes to the latter."""

    def __init__(self, models: Models) -> None:
        self.models = models
        self._runs: dict[int, Run] = {}

    def add(self, prompt: Prompt) -> Stream:
        generator = self.models.generator()
        if prompt.slots is not None and getattr(generator, "model", None) is not self.models.memory_model():
            generator = self.recaller
        if id(generator) not in self._runs:
            self._runs[id(generator)] = generator.open()
        return self._runs[id(generator)].add(prompt)

    @cached_property
    def recaller(self) -> Generator:
        from memo.generate import LocalGenerator

        return LocalGenerator(self.models.memory_model(), "memory")

    def step(self) -> bool:
        return any([run.step() for run in self._runs.values()])  # noqa: C419 (every run shall step)

    def close(self) -> None:
        for run in self._runs.values():
            run.close()


@contextmanager
def open_library(folder: str | Path, settings: Settings | None = None) -> Iterator[MemoRAG]:
    """The library in a folder, made if it is not there, with the models of the settings (the environment's if None).

    Raises:
        LibraryBusy: another process has it open.
    """
    settings = settings or from_environment()
    models = Models(settings)
    with Library(Path(folder), models.embedder, server=settings.chroma) as library:
        yield MemoRAG(library, models, settings)


def finish(events: Iterator[Event], each: Callable[[Event], None] = lambda event: None) -> dict[str, Answer]:
    """Runs `ask` or `compare` to the end. Returns the answers by strategy.

    Raises:
        MemoError: the first strategy that failed.
    """
    answers: dict[str, Answer] = {}
    for event in events:
        each(event)
        if isinstance(event, AnswerDone):
            answers[event.strategy] = event.answer
        if isinstance(event, AnswerFailed):
            raise event.error
    return answers
