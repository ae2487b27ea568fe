"""Memorizing by many processes, on one machine or on many: Ray actors that each hold the models.

In: files and a library. Out: what `MemoRAG.memorize` yields, and the library that one process would have made: the same
memories, passages and vectors, in the order of the files. The actors read, split, embed and memorize; this process, the
only one that has the library open, puts in what they made. A file that fails is told and the others go on; what a
killed run had put in is there, and the next run leaves it as it is.

The same to the last bit, where one process has as many threads as a worker, which is one: with more, float32 is added
up in another order.

Actors start on the cluster at RAY_ADDRESS, else on this machine. Files are read here and sent, so that the machines
need no folder in common; models are loaded there, by the same settings.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memo.errors import BackendError, DocumentError, MemoError, SettingsError, reason
from memo.events import DocumentProgress
from memo.library import Entry, Library, text_hash
from memo.models import Models
from memo.search import BATCH
from memo.settings import Settings

if TYPE_CHECKING:
    from memo.documents import Document
    from memo.memory import DocumentMemory
    from memo.passages import Passage
    from memo.pipeline import MemoRAG

AHEAD = 4  # files sent per worker before the first of them is put in: what a slow file lets pile up, or a kill loses
AGAIN = 2  # times a file is tried again when the worker that has it dies


@dataclass(frozen=True)
class Made:
    """All that a library keeps of a document. vectors: one a passage, unit length. seconds: what it took to make."""

    document: Document
    passages: list[Passage]
    vectors: list[list[float]]
    memory: DocumentMemory
    seconds: float


class Worker:
    """The models of one process."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.models = settings, Models(settings)

    def load(self) -> MemoError | None:
        """Loads the models; an error is given back, as by `make`."""
        try:
            self.models.memory_model(), self.models.embedder()
        except MemoError as error:
            return error
        return None

    def make(self, data: bytes, name: str, ratio: int, known: Mapping[str, int]) -> Made | Document | MemoError:
        """Reads, splits, embeds and memorizes a file; of one that is `known` (id -> ratio) only the document is given.
        An error of ours is given back: raised it would come as one of Ray's."""
        try:
            return made(data, name, ratio, known, self.models, self.settings)
        except MemoError as error:
            return error


def made(
    data: bytes, name: str, ratio: int, known: Mapping[str, int], models: Models, settings: Settings
) -> Made | Document:
    """What `Worker.make` gives. Raises MemoError: the file cannot be read or memorized."""
    from memo.documents import read_bytes
    from memo.memory import read_all
    from memo.passages import split

    began = time.monotonic()
    document = read_bytes(data, name, **settings.file_limits)
    model, embedder = models.memory_model(), models.embedder()
    wanted = model.fitting_ratio(len(model.encode(document.text)[0]), ratio, settings.window)
    if known.get(document.id) == wanted:
        return document
    passages = split(document, embedder.tokenizer, min(settings.passage_tokens, embedder.max_tokens - 2))
    vectors: list[list[float]] = []
    for start in range(0, len(passages), BATCH):  # the same batches as `Library.add_passages`: the same vectors
        vectors += embedder.encode([passage.text for passage in passages[start : start + BATCH]])
    steps = model.memorize(document.text, document.id, ratio, settings.window, text_sha256=text_hash(document.text))
    return Made(document, passages, vectors, read_all(steps), time.monotonic() - began)


def keep(library: Library, made: Made) -> Entry:
    """Puts what a worker made into the library."""
    document = made.document
    with library.making(document.id) as path:
        for _ in library.add_passages(document.id, made.passages, made.vectors):
            pass
        return library.commit(path, document, made.passages, made.memory, made.seconds)


@contextmanager
def pool(settings: Settings, workers: int) -> Iterator[list[Any]]:
    """Ray actors, each a `Worker`. GPUs, where there are some, are shared evenly.

    Raises:
        SettingsError: Ray is not installed, or its cluster has fewer processors. BackendError: it does not start.
        ModelError: a model cannot be loaded.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise SettingsError("Ray is not installed.", 'Install it: pip install "memo[scale]"') from None
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level="ERROR")
        else:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # ConnectionError, ValueError, its own
        raise BackendError(f"Ray does not start: {reason(error)}", "Check RAY_ADDRESS.") from error
    try:
        there = ray.cluster_resources()
        if there.get("CPU", 0) < workers:
            raise SettingsError(f"The cluster has {there.get('CPU', 0):g} processors.", "Choose fewer workers.")
        share = 0 if settings.device == "cpu" else min(1.0, there.get("GPU", 0) / workers)
        kind = ray.remote(num_cpus=1, num_gpus=share, max_restarts=-1, max_task_retries=AGAIN)(Worker)
        actors = [kind.remote(settings) for _ in range(workers)]
        for error in filter(None, ray.get([actor.load.remote() for actor in actors])):
            raise error
        yield actors
    finally:
        ray.shutdown()


def in_order(actors: Sequence[Any], jobs: Iterable[tuple[Any, ...] | MemoError]) -> Iterator[Any]:
    """What `Worker.make` gives for each of the jobs (its arguments; an error is given back as it is), in their order.

    A worker gets its next job while others are still at earlier ones; jobs are taken no sooner than they are sent.
    """
    import ray

    jobs, idle = enumerate(jobs), deque(actors)
    running, done, at, sent = dict[Any, tuple[int, Any]](), dict[int, Any](), 0, 0
    while True:
        while idle and sent - at < AHEAD * len(actors) and (job := next(jobs, None)):
            sent = job[0] + 1
            if isinstance(job[1], MemoError):
                done[job[0]] = job[1]
            else:
                actor = idle.popleft()
                running[actor.make.remote(*job[1])] = job[0], actor
        if at in done:
            yield done.pop(at)
            at += 1
        elif running:
            [first], _ = ray.wait(list(running))
            place, actor = running.pop(first)
            done[place] = first
            idle.append(actor)
        else:
            return


def memorize(
    rag: MemoRAG, files: Sequence[str | Path], ratio: int, actors: Sequence[Any]
) -> Iterator[DocumentProgress]:
    """Memorizes files by the workers of a `pool`. Yields "ready" or "failed" for each file, in their order."""
    import ray

    from memo.documents import clean_name, file_bytes

    library, limit, put = rag.library, rag.settings.file_limits["max_bytes"], set[str]()
    names = [clean_name(Path(file).name) for file in files]
    known = ray.put({entry.id: entry.ratio for entry in library.documents.values()})

    def jobs() -> Iterator[tuple[Any, ...] | MemoError]:
        for file, name in zip(files, names, strict=True):
            try:
                yield file_bytes(file, name, limit), name, ratio, known
            except DocumentError as error:
                yield error

    def fetched(result: Any) -> Made | Document | MemoError:
        try:
            return result if isinstance(result, MemoError) else ray.get(result)
        except ray.exceptions.RayError as error:  # it died, again and again, or what it made was lost
            told = reason(getattr(error, "cause", None) or error)
            return BackendError(f"The worker failed: {told}", "Has it enough memory?")

    for file, name, result in zip(files, names, in_order(actors, jobs()), strict=True):
        found = fetched(result)
        try:
            if not isinstance(found, Made | MemoError) and not rag.usable(found.id):  # it is known, but damaged
                found = fetched(actors[0].make.remote(file_bytes(file, name, limit), name, ratio, {}))
            if isinstance(found, MemoError):
                raise found
            if isinstance(found, Made) and found.document.id not in put:  # else the same file is there twice
                put.add(keep(library, found).id)
            entry = library.documents[found.document.id if isinstance(found, Made) else found.id]
            yield DocumentProgress(name, "ready", entry.id, entry.tokens, entry.tokens, entry.slots, entry.ratio)
        except MemoError as error:
            yield DocumentProgress(name, "failed", error=error)
        except OSError as error:  # no space left, say
            told = f"{name} could not be stored: {error.strerror or error}."
            yield DocumentProgress(name, "failed", error=MemoError(told, "Make room, then try again."))


@contextmanager
def memorizing(
    folder: Path, files: Sequence[str], settings: Settings, ratio: int, workers: int = 0
) -> Iterator[tuple[MemoRAG, Iterator[DocumentProgress]]]:
    """The library in a folder, and the memorizing of files into it.

    workers: of Ray; a file that fails does not stop the others. 0: this process does it; all files are read before
    anything is changed, and one that cannot be memorized is an error.

    Raises:
        DocumentError, MemoryTooLong: without workers, as said. LibraryBusy: another process has the library open.
    """
    from memo.documents import read_document
    from memo.pipeline import MemoRAG

    models = Models(settings)
    documents = [] if workers else [read_document(path, **settings.file_limits) for path in files]
    for document in documents:
        model = models.memory_model()
        model.fitting_ratio(len(model.encode(document.text)[0]), ratio, settings.window)
    with Library(folder, models.embedder, server=settings.chroma) as library:
        rag = MemoRAG(library, models, settings)
        if not workers:
            yield rag, rag.memorize(documents, ratio)
            return
        with pool(settings, workers) as actors:
            yield rag, memorize(rag, files, ratio, actors)
