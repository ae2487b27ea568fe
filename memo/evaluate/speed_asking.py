"""Speed of asking: four answers at once, a search among many passages, many visitors, one question from end to end.

In: models and a long text. Out: rows.

    compare     four answers in one batch, against the same four one after another and against the slowest of them
    search      looking up passages in Chroma, against embedding the query
    visitors    seconds to the first clue when several ask at once, against one who asks alone
    walk        the timeline of one comparison
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from memo.answers import DEFAULT_COMPARISON
from memo.documents import Document
from memo.evaluate.speed_memory import Bench, Table, cut
from memo.evaluate.turns import middle, seconds_of, times
from memo.events import CluesRecalled
from memo.library import Library
from memo.pipeline import MemoRAG, Models, Stop, finish
from memo.search import PassageIndex, Query, connect
from memo.sessions import Session, Sessions

QUESTIONS = (
    "What is this text about?",
    "Who is named in this text, and what do they do?",
    "What happens at the end, and why?",
)
COMPARED = 3072  # tokens of the document that is compared on
VISITED = 2048  # tokens of each visitor's document
SEARCHES = 10  # in a round: one takes milliseconds


@contextmanager
def _library(bench: Bench, models: Models) -> Iterator[MemoRAG]:
    """A library with one document of `COMPARED` tokens, of which something was asked before, so that all is loaded."""
    with Library(bench.folder / "compared", models.embedder) as library:
        rag = MemoRAG(library, models, bench.settings)
        list(rag.memorize([Document("compared", "compared.txt", cut(bench.model, bench.text, COMPARED))]))
        finish(rag.ask("What kind of text is this?"))
        yield rag


def compare(bench: Bench, models: Models) -> Table:
    """Seconds of four answers in one batch, over the sum of the four asked one by one and over the slowest of them.

    Each round asks the next of `QUESTIONS` in both ways.
    """
    together, apart = [], {name: list[float]() for name in DEFAULT_COMPARISON}
    with _library(bench, models) as rag:
        for turn in range(bench.repeats):
            question = QUESTIONS[turn % len(QUESTIONS)]
            together.append(seconds_of(lambda question=question: finish(rag.compare(question, DEFAULT_COMPARISON))))
            for name, seconds in apart.items():
                seconds.append(seconds_of(lambda q=question, name=name: finish(rag.ask(q, name))))
            bench.tell(f"compare: four answers in {together[-1]:.1f} s")
        [entry] = rag.library.documents.values()
    rounds = list(zip(*apart.values(), strict=True))
    alone = {f"{name}_seconds": middle(seconds) for name, seconds in apart.items()}
    over = {"the sum of the four": [sum(four) for four in rounds], "the slowest of the four": list(map(max, rounds))}
    return [
        {
            "over": name, **times(together, seconds), "together_seconds": middle(together),
            "over_seconds": middle(seconds), **alone, "tokens": entry.tokens,
        }
        for name, seconds in over.items()
    ]  # fmt: skip


class _Timed:
    """An embedder that notes how long it takes, so that a search can be told from the embedding of its query."""

    def __init__(self, embedder: Any) -> None:
        self.embedder, self.seconds = embedder, 0.0

    def encode(self, texts: list[str]) -> list[list[float]]:
        began = time.perf_counter()
        vectors = self.embedder.encode(texts)
        self.seconds += time.perf_counter() - began
        return vectors


def search(bench: Bench, models: Models, passages: Sequence[int], queries: Sequence[int] = (1, 10)) -> Table:
    """Milliseconds that Chroma takes for the queries of one call, over those of embedding them.

    The passages are random unit vectors: real ones would take an hour to embed.
    """
    embedder, starts, rows = _Timed(models.embedder()), random.Random(0), Table()
    index = PassageIndex(connect(bench.folder / "passages"), "passages", embedder)  # type: ignore[arg-type]
    size = len(embedder.encode(["size"])[0])
    for wanted in sorted(passages):
        _fill(index, wanted, size)
        for count in queries:
            found, embedded = [], []
            for turn in range(1 + SEARCHES * bench.repeats):
                places = [starts.randrange(max(1, len(bench.text) - 80)) for _ in range(count)]
                asked = [Query("speed", (bench.text[place : place + 80] or "?",)) for place in places]
                embedder.seconds = 0.0
                whole = seconds_of(lambda asked=asked: index.rank(asked))
                if turn:  # the first warms up
                    found.append(1000 * (whole - embedder.seconds))
                    embedded.append(1000 * embedder.seconds)
            pieces = {"search_milliseconds": middle(found), "embedding_milliseconds": middle(embedded)}
            about = {"passages": wanted, "queries": count}
            rows.append({**about, **times(found, embedded), **pieces})
        bench.tell(f"search: {wanted:,} passages, {pieces['search_milliseconds']} ms for {count} queries")
    return rows


def _fill(index: PassageIndex, wanted: int, size: int) -> None:
    """Random unit vectors of `size` numbers, until there are `wanted`."""
    there, batch = index.count(), index.client.get_max_batch_size()
    draw = np.random.default_rng(there)
    for start in range(there, wanted, batch):
        ids = range(start, min(start + batch, wanted))
        vectors = draw.standard_normal((len(ids), size)).astype(np.float32)
        index.collection.upsert(
            ids=[str(i) for i in ids],
            embeddings=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
            metadatas=[{"document": "random", "start": i, "end": i + 1, "page": 0} for i in ids],
        )


def visitors(bench: Bench, models: Models, together: Sequence[int]) -> Table:
    """Seconds to the first clue when several visitors ask at once, over those of one visitor alone.

    Each has a session and a library of their own with the same document; they share the models, in threads, as in the
    app. Nobody ends before everybody has a first clue. The app itself lets a few be answered at a time: others wait.
    """
    sessions = Sessions(replace(bench.settings, data=bench.folder / "visitors", max_sessions=max(together)), models)
    document = Document("visited", "visited.txt", cut(bench.model, bench.text, VISITED))
    try:
        everybody = [sessions.open() for _ in range(max(together))]
        for session in everybody:
            list(session.memorize([document]))
            _until_clues(session)  # what is done once for each library is done
        bench.tell(f"visitors: {len(everybody)} libraries are ready")
        counts = sorted({1, *together})
        waits = {count: list[list[float]]() for count in counts}
        for _ in range(bench.repeats):
            for count in counts:
                waits[count].append(_ask_at_once(everybody[:count]))
    finally:
        sessions.close_all()
    alone = [max(seconds) for seconds in waits[1]]
    rows = []
    for count, rounds in waits.items():
        for name, of in (("median", statistics.median), ("last", max)):
            seconds = [of(one) for one in rounds]
            pieces = {"first_clue_seconds": middle(seconds), "alone_seconds": middle(alone)}
            rows.append({"visitors": count, "of": name, **times(seconds, alone), **pieces})
        bench.tell(f"visitors: {count} at once, the last one's first clue after {rows[-1]['first_clue_seconds']} s")
    return rows


def _until_clues(session: Session) -> None:
    for event in session.rag.ask(QUESTIONS[0]):
        if isinstance(event, CluesRecalled) and event.final:
            break


def _ask_at_once(sessions: Sequence[Session]) -> list[float]:
    """Seconds to each visitor's first clue."""
    waits, stop, start = dict[int, float](), Stop(), threading.Barrier(len(sessions))

    def ask(index: int) -> None:
        start.wait()
        began = time.perf_counter()
        for event in sessions[index].rag.ask(QUESTIONS[0], stop=stop):
            if isinstance(event, CluesRecalled) and index not in waits:
                waits[index] = time.perf_counter() - began
                if len(waits) == len(sessions):
                    stop.all()

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(waits.values())


def walk(bench: Bench, models: Models) -> Table:
    """Seconds from the question to the first clue, all clues, the passages, the first and the last word of each of four
    answers made at once. One row a strategy, in the order in which they ended."""
    with _library(bench, models) as rag:
        answers = finish(rag.compare(QUESTIONS[1], DEFAULT_COMPARISON))
        [entry] = rag.library.documents.values()
    return [
        {
            "strategy": name, **{f"{moment}_seconds": seconds for moment, seconds in answer.timings.items()},
            "prompt_tokens": answer.prompt_tokens, "answer_tokens": answer.answer_tokens, "tokens": entry.tokens,
        }
        for name, answer in answers.items()
    ]  # fmt: skip
