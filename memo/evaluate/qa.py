"""Answers measured: every strategy on the same questions, with the same generator, budget, prompts and decoding.

In: a `QuestionSet`, models, settings. Out: rows (what each strategy found and said for each question), and from them
means with intervals and paired differences against `rag`.

Questions are worked on in batches of fixed composition: all prompts of a batch decode together, and a prompt that two
strategies share (the same passages, the same clues) is generated once. Batches are the unit of resuming. Seconds are
measured apart, each strategy alone, on a few of the questions.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memo import clues as recall
from memo.answers import STRATEGIES, Ask, Steps
from memo.cite import cite
from memo.errors import MemoError
from memo.evaluate.data import Question, QuestionSet, Shelf
from memo.evaluate.rows import Rows
from memo.evaluate.strategies import OTHERS, PARTS, TOLD, WITH_PASSAGES, recalled
from memo.evaluate.summary import summarise
from memo.events import AnswerDone, CluesRecalled, Found, PassagesFound
from memo.generate import Prompt, Stream
from memo.library import Library
from memo.passages import sentences
from memo.pipeline import MemoRAG, Runs

if TYPE_CHECKING:
    from memo.models import Models
    from memo.settings import Settings

BATCH = 10  # questions that are worked on together
KEPT = 10  # passages of a ranking that rows keep


@dataclass
class Task:
    """One strategy on one question. answer: None where only the retrieval is measured."""

    question: Question
    strategy: str
    ask: Ask
    steps: Steps
    answering: bool
    streams: list[Stream] = field(default_factory=list)
    final: bool = False
    read: int = 0  # prompt tokens
    answer: str | None = None
    error: str = ""
    sent: bool = False


class Batch:
    """Runs the steps of many tasks in one batch of the generator; equal prompts are generated once."""

    def __init__(self, models: Models) -> None:
        self.runs = Runs(models)
        self.streams: dict[Prompt, Stream] = {}

    def work(self, tasks: Sequence[Task]) -> None:
        """All tasks to their end; one that fails carries its error."""
        for task in tasks:
            if not task.error:
                self._advance(task)
        waiting = [task for task in tasks if task.streams]
        while waiting:
            self.runs.step()
            for task in waiting:
                if all(stream.done for stream in task.streams):
                    self._advance(task)
            waiting = [task for task in waiting if task.streams]

    def _advance(self, task: Task) -> None:
        """Gives a task the streams it waited for, and adds what it wants next; at its end, takes its answer."""
        streams, task.streams = task.streams, []
        try:
            for stream in streams:
                if stream.error:
                    raise stream.error
            task.read += sum(stream.prompt_tokens for stream in streams)
            if task.final:
                task.answer = streams[0].text.strip()
                return
            item = task.steps.send(streams) if task.sent else next(task.steps)
            while isinstance(item, CluesRecalled | PassagesFound):
                item = next(task.steps)
            task.sent, task.final = True, isinstance(item, Prompt)
            if task.final and not task.answering:
                return
            task.streams = [self.add(prompt) for prompt in ([item] if isinstance(item, Prompt) else item)]
        except MemoError as error:
            task.error = str(error)

    def add(self, prompt: Prompt) -> Stream:
        """The stream of a prompt: a new one, or that of an equal prompt."""
        if prompt not in self.streams:
            self.streams[prompt] = self.runs.add(prompt)
        return self.streams[prompt]

    def close(self) -> None:
        self.runs.close()


class Shelves:
    """Libraries of the shelves that are in use, memorized when first needed, deleted when no longer."""

    def __init__(self, models: Models, settings: Settings, folder: Path) -> None:
        import chromadb
        from chromadb.config import Settings as ChromaSettings

        self.models, self.settings, self.folder = models, settings, folder
        self.client = chromadb.EphemeralClient(ChromaSettings(anonymized_telemetry=False))
        self.open: dict[str, MemoRAG] = {}
        self.failed: dict[str, str] = {}

    def use(self, shelves: Sequence[Shelf]) -> None:
        """Has these open, no others; one that cannot be memorized is in `failed` with the reason."""
        for key in set(self.open) - {shelf.key for shelf in shelves}:
            self.open.pop(key).library.destroy()
        new = []
        for shelf in shelves:
            if shelf.key in self.open or shelf.key in self.failed:
                continue
            try:
                self.open[shelf.key] = self._memorized(shelf)
                new.append(shelf)
            except MemoError as error:
                self.failed[shelf.key] = str(error)
        batch = Batch(self.models)  # what a memory is always looked at, which the pointers need: once for each memory
        memories = [self.open[shelf.key].library.memory(self.models.memory_model()) for shelf in new]
        composed = [memory.compose() for memory in memories]
        streams = [batch.add(recall.neutral(memory)) for memory in composed]
        while batch.runs.step():
            pass
        for memory, stream in zip(composed, streams, strict=True):
            recall.learn_usual(memory, stream)
        batch.close()

    def _memorized(self, shelf: Shelf) -> MemoRAG:
        root = Path(tempfile.mkdtemp(dir=self.folder))
        library = Library(root, self.models.embedder, client=self.client)
        rag = MemoRAG(library, self.models, self.settings)
        for progress in rag.memorize(shelf.documents):
            if progress.error:
                library.destroy()
                raise progress.error
        return rag


def _task(question: Question, strategy: str, shelves: Shelves, answering: bool, whole: Task | None = None) -> Task:
    """whole: memorag's task for the question, whose clues its parts search by."""
    rag, models = shelves.open[question.shelf.key], shelves.models
    ask = Ask(question.text, strategy, shelves.settings, rag.library, models.generator(), models.memory_model)
    if strategy in PARTS:
        assert whole is not None
        if whole.error:
            return Task(question, strategy, ask, iter(()), answering, error=whole.error)
        ask.edited, ask.memory, ask.looked = whole.ask.clues, whole.ask.memory, whole.ask.looked
        steps = recalled(ask, PARTS[strategy])
    else:
        steps = {**STRATEGIES, **OTHERS}[strategy](ask)
    return Task(question, strategy, ask, steps, answering)


def batch_rows(
    questions: Sequence[Question], strategies: Sequence[str], answered: set[str], shelves: Shelves
) -> list[dict[str, Any]]:
    """What each strategy found and said, for each of these questions."""
    shelves.use(list({q.shelf.key: q.shelf for q in questions}.values()))
    lost = [
        {"question": q.id, "strategy": name, "error": shelves.failed[q.shelf.key]}
        for q in questions for name in strategies
        if q.shelf.key in shelves.failed and (q.id in answered or name in WITH_PASSAGES)
    ]  # fmt: skip
    questions = [q for q in questions if q.shelf.key in shelves.open]
    batch = Batch(shelves.models)
    first = [name for name in strategies if name not in PARTS]
    if set(strategies) & set(PARTS) and "memorag" not in first:
        first.append("memorag")
    tasks: list[Task] = []
    whole: dict[str, Task] = {}
    try:
        for names in (first, [name for name in strategies if name in PARTS]):
            some = [
                _task(q, name, shelves, q.id in answered, whole.get(q.id)) for q in questions for name in names
                if q.id in answered or name in WITH_PASSAGES
            ]  # fmt: skip
            batch.work(some)
            whole |= {task.question.id: task for task in some if task.strategy == "memorag"}
            tasks += some
    finally:
        batch.close()
    return lost + [_row(task) for task in tasks if task.strategy in strategies]


def _row(task: Task) -> dict[str, Any]:
    """What is kept of a task: everything that metrics need, and of the documents no text but what clues quote."""
    ask, question = task.ask, task.question
    row: dict[str, Any] = {"question": question.id, "strategy": task.strategy}
    if task.error:
        return row | {"error": task.error}
    if task.strategy in WITH_PASSAGES:
        row["ranked"] = [[r.hit["document"], r.hit["start"], r.hit["end"]] for r in ask.ranked[:KEPT]]
    if task.strategy == "memorag":
        row["clues"] = [
            {"kind": c.kind, "text": c.text, "score": c.score, "sources": [vars(s) for s in c.sources]}
            for c in ask.clues
        ]  # fmt: skip
    if task.answer is not None:
        row |= {"answer": task.answer, "cited": _cited(task.answer, ask.passages), "cut": bool(ask.notes)}
        if task.strategy not in PARTS:  # these take over what memorag has read
            row["prompt_tokens"] = task.read
    return row


def _cited(answer: str, passages: Sequence[Found]) -> dict[str, Any]:
    """How many sentences an answer has, and the places that are cited."""
    citations = cite(answer, passages)
    places = [[c.source.document, c.source.start, c.source.end] for c in citations]
    return {"sentences": len(sentences(answer)), "places": places}


def timed_rows(questions: Sequence[Question], strategies: Sequence[str], shelves: Shelves) -> list[dict[str, Any]]:
    """Seconds of each strategy alone, from the asking to the last word."""
    rows = []
    for question in questions:
        shelves.use([question.shelf])
        if question.shelf.key in shelves.failed:
            continue
        rag = shelves.open[question.shelf.key]
        rag.library.memory(shelves.models.memory_model())  # loaded, as it is for whoever asks a second question
        for strategy in strategies:
            began = time.monotonic()
            if strategy not in STRATEGIES:
                batch = Batch(shelves.models)
                batch.work([_task(question, strategy, shelves, True)])
                batch.close()
                done = True
            else:
                done = any(isinstance(event, AnswerDone) for event in rag.ask(question.text, strategy))
            if done:
                rows.append({"question": question.id, "strategy": strategy, "seconds": time.monotonic() - began})
    return rows


@contextmanager
def _shelves(models: Models, settings: Settings) -> Iterator[Shelves]:
    with tempfile.TemporaryDirectory() as folder:
        shelves = Shelves(models, settings, Path(folder))
        try:
            yield shelves
        finally:
            shelves.use([])


def batches(questions: Sequence[Question]) -> list[list[Question]]:
    """Questions that are worked on together, always the same: whole shelves; one with more than `BATCH` in parts."""
    made: list[list[Question]] = []
    for _, of_shelf in groupby(questions, key=lambda question: question.shelf.key):
        some = list(of_shelf)
        if made and len(made[-1]) + len(some) <= BATCH:
            made[-1] += some
        else:
            made += [some[i : i + BATCH] for i in range(0, len(some), BATCH)]
    return made


def sizes(settings: Settings) -> dict[str, int]:
    """What of the settings changes what is found and said."""
    names = ("ratio", "window", "passage_tokens", "context_tokens", "clue_tokens", "answer_tokens")
    return {name: getattr(settings, name) for name in names}


def digest(*values: object) -> str:
    """A short name for JSON values."""
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode()).hexdigest()[:16]


def evaluate(
    questions: QuestionSet, models: Models, settings: Settings, strategies: Sequence[str], rows: Rows,
    answer_every: int = 1, timed: int = 0, seed: int = 0, tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Runs what `rows` does not hold yet; returns the results of all. More questions use the rows of fewer.

    answer_every: 5 answers every fifth question; retrieval is measured on all of them.
    timed: how many of the answered are asked again, each strategy alone, for its seconds.
    """
    if rows.done:
        tell(f"{len(rows.done)} units of work are there from before.")
    asked = list(questions.questions)
    answered = asked[::answer_every]
    used = []
    with _shelves(models, settings) as shelves:
        done = 0
        for some in batches(asked):
            done += len(some)
            to_answer = [question.id for question in some if question in answered]
            used.append(digest([[q.id, q.text, [d.id for d in q.shelf.documents]] for q in some], to_answer))
            if used[-1] not in rows.done:
                rows.add(used[-1], batch_rows(some, strategies, set(to_answer), shelves))
                tell(f"{done} of {len(asked)} questions")
        if timed:
            few, whole = answered[:: -(-len(answered) // timed)], [name for name in strategies if name not in PARTS]
            used.append(digest("timed", [question.id for question in few]))
            if used[-1] not in rows.done:
                rows.add(used[-1], timed_rows(few, whole, shelves))
    every = [row for key in used for row in rows.done[key]]
    shelves_used = {question.shelf.key: question.shelf for question in asked}
    characters = sum(len(document.text) for shelf in shelves_used.values() for document in shelf.documents)
    return {
        "set": questions.name, "split": questions.split, "language": questions.language,
        "evidence": "given" if questions.given else "where an answer stands in the question's document",
        "questions": len(asked), "answered": len(answered), "libraries": len(shelves_used), "characters": characters,
        "skipped": questions.skipped,
        "what": {
            **models.names(), **sizes(settings), "decoding": "greedy", "seed": seed,
            "strategies": {name: TOLD[name] for name in strategies},
        },
        **summarise(questions, every, seed),
    }  # fmt: skip
