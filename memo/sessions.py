"""Visitors: each has a library of their own, with limits and an end; what is theirs is deleted for good.

In: tokens that the app hands out. Out: a `Session` with its own folder and its own Chroma collection, told apart by a
random token that only that visitor's page knows. A session ends on request, when its page is left, or after a time
without use; then its documents, memories, passages and folder are deleted. All of it is gone when the app starts anew.
"""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from memo.documents import Document
from memo.errors import LimitReached, MemoError
from memo.events import DocumentProgress
from memo.library import Library, collection_of, hold, make_folder
from memo.log import note
from memo.pipeline import MemoRAG, Models, Stop
from memo.search import connect
from memo.settings import Settings
from memo.train.recipe import Studying

_TOKEN = re.compile(r"[0-9a-f]{32}")


def repeat(work: Callable[[], None], every: float, ended: threading.Event, name: str) -> None:
    """Has `work` done every so many seconds in a thread of that name, until `ended` is set."""

    def keep() -> None:
        while not ended.wait(every):
            work()

    threading.Thread(target=keep, daemon=True, name=name).start()


@dataclass
class Session:
    """One visitor. `rag` is theirs alone; `busy` lets one change of their library happen at a time."""

    token: str
    rag: MemoRAG
    settings: Settings
    history: list[tuple[str, str]] = field(default_factory=list)  # (question, answer) pairs, oldest first
    used: float = field(default_factory=time.monotonic)
    stop: Stop = field(default_factory=Stop)
    closed: bool = False
    busy: threading.Lock = field(default_factory=threading.Lock)
    training: threading.Lock = field(default_factory=threading.Lock)  # held while a decoder is made in its folder
    view: Any = None  # what the app keeps of this visitor's page; it ends with the session

    def memorize(self, documents: Sequence[Document], ratio: int | None = None) -> Iterator[DocumentProgress]:
        """`MemoRAG.memorize` within this visitor's limits: a document over them fails, the others go on."""
        with self.busy:
            for document in documents:
                try:
                    self._allow(document)
                except MemoError as error:
                    yield DocumentProgress(document.name, "failed", document.id, error=error)
                    continue
                began = time.monotonic()
                for progress in self.rag.memorize([document], ratio, self.stop):
                    self.used = time.monotonic()
                    if progress.error is not None:
                        note("not memorized", error=type(progress.error).__name__, seconds=self.used - began)
                    elif progress.state == "ready":
                        note("memorized", tokens=progress.total, slots=progress.slots, seconds=self.used - began)
                    yield progress
                    if self.closed:
                        return

    def _allow(self, document: Document) -> None:
        if self.closed:
            raise LimitReached("This session has ended.", "Reload the page to begin a new one.")
        there = self.rag.library.documents
        if document.id not in there and len(there) >= self.settings.max_documents:
            raise LimitReached(f"There are {len(there)} documents already.", "Delete one to make room.")
        tokens = sum(entry.tokens for entry in there.values() if entry.id != document.id)
        size = len(self.rag.models.memory_model().encode(document.text)[0])
        if tokens + size > self.settings.max_tokens:
            raise LimitReached(
                f"{document.name} has {size:,} tokens; {max(0, self.settings.max_tokens - tokens):,} are left.",
                "Delete a document, or put in a shorter one.",
            )

    def study(self, name: str, plan: Studying) -> Iterator[DocumentProgress]:
        """`MemoRAG.study`, as the only change of this visitor's library meanwhile."""
        with self.busy:
            for progress in self.rag.study(name, plan, self.stop):
                self.used = time.monotonic()
                yield progress
                if self.closed:
                    return

    def forget(self, name: str) -> str:
        """Takes a document out. Returns its id. Raises UnknownDocument."""
        with self.busy:
            return self.rag.forget(name)


class Sessions:
    """All visitors of one app."""

    def __init__(self, settings: Settings, models: Models | None = None, client: Any = None) -> None:
        """Deletes what an earlier run of the app left in the sessions' folder, and nothing else there.

        Raises:
            LibraryBusy: another app keeps its visitors in the same folder.
        """
        self.settings, self.models = settings, models or Models(settings)
        make_folder(settings.data)
        self._held = hold(settings.data / ".lock", settings.data)
        left = [path for path in settings.data.iterdir() if _TOKEN.fullmatch(path.name)]
        collections = {collection_of(path) for path in left}
        for path in [*left, settings.data / "chroma"]:
            shutil.rmtree(path, ignore_errors=True)
        self.client = client or connect(settings.data / "chroma", settings.chroma)
        for name in {collection.name for collection in self.client.list_collections()} & collections:
            self.client.delete_collection(name)  # a Chroma server outlives the app
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, token: object) -> bool:
        """Whether it is the token of a session that has not ended; asking does not count as use."""
        return token in self._sessions

    def all(self) -> list[Session]:
        """Those that are open now."""
        return list(self._sessions.values())

    def open(self) -> Session:
        """A new visitor.

        Raises:
            LimitReached: as many visitors as the settings allow, all of them active.
        """
        self.sweep()
        with self._lock:
            if len(self._sessions) >= self.settings.max_sessions:
                raise LimitReached("Too many people are here right now.", "Try again in a few minutes.")
            token = secrets.token_hex(16)
            library = Library(self.settings.data / token, self.models.embedder, self.client)
            session = Session(token, MemoRAG(library, self.models, self.settings), self.settings)
            self._sessions[token] = session
            note("session opened", sessions=len(self._sessions))
            return session

    def get(self, token: object) -> Session:
        """The session of a token. The token is all that proves who asks: it is compared whole, and never shown.

        Raises:
            LimitReached: there is no such session, or it has ended.
        """
        session = self._sessions.get(token) if isinstance(token, str) and _TOKEN.fullmatch(token) else None
        if session is None or session.closed:
            raise LimitReached("This session has ended.", "Reload the page to begin a new one.")
        session.used = time.monotonic()
        return session

    def close(self, token: str) -> None:
        """Ends a session and deletes everything of it; harmless if there is none."""
        with self._lock:
            session = self._sessions.pop(token, None)
        if session is None:
            return
        session.closed = True
        session.stop.all()
        with session.training, session.busy:  # what is being made ends at its next window or step
            documents = len(session.rag.library.documents)
            session.rag.library.destroy()
        note("session ended", sessions=len(self), documents=documents)

    def sweep(self) -> None:
        """Ends the sessions that have not been used for `session_minutes`."""
        limit = time.monotonic() - 60 * self.settings.session_minutes
        for token in [t for t, session in list(self._sessions.items()) if session.used < limit]:
            with suppress(MemoError):  # a database that does not answer; the files are deleted all the same
                self.close(token)

    def watch(self, every: float = 30.0) -> threading.Event:
        """Sweeps in the background until the returned event is set."""
        ended = threading.Event()
        repeat(self.sweep, every, ended, "memo-sweep")
        return ended

    def stop_all(self) -> None:
        """Has everything that runs end at its next token, window or step."""
        for session in self.all():
            session.stop.all()

    def close_all(self) -> None:
        """Ends all sessions, as the app does when it stops."""
        for token in list(self._sessions):
            with suppress(MemoError):
                self.close(token)
        self._held.close()
