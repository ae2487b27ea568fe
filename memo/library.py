"""A library: documents, their memories and their passages, on disk, safe against being killed at any moment.

In: documents and their memories. Out: the same, later. On disk, below one folder:

    lock                                      one process at a time
    library.json                              version, name of the Chroma collection
    documents/<id>/text.txt, document.json, memory.safetensors
    chroma/                                   unless a Chroma client is given
    words.sqlite                              the words of the passages

A document is put together in `documents/.making-<id>` and becomes real by one rename, after its passages are in
Chroma. What an interrupted process left (`.making-`, `.gone-`) is cleared when the library is opened.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from memo.errors import DamagedMemory, LibraryBusy, MemoryFileError, SettingsError, UnknownDocument
from memo.models import write_atomic
from memo.passages import Passage
from memo.search import BATCH, DEPTH, PassageIndex, Query, connect, mixed
from memo.words import WordIndex

if TYPE_CHECKING:
    from memo.documents import Document
    from memo.memory import DocumentMemory, Memory, MemoryModel

VERSION = 1
MAKING, GONE = ".making-", ".gone-"


@dataclass(frozen=True)
class Entry:
    """What is known of a document without loading it. bytes: of its memory; full_bytes: of a plain KV cache."""

    id: str
    name: str
    tokens: int
    slots: int
    ratio: int
    bytes: int
    full_bytes: int
    seconds: float
    added: float
    pages: int
    characters: int


class Library:
    """Documents with their memories and passages. One process may have a library open at a time.

    Raises:
        LibraryBusy: another process has it open.
    """

    def __init__(self, root: Path, embedder: Any, client: Any = None, server: str = "") -> None:
        """embedder: a function without arguments that gives the `Embedder`; it is loaded when first needed."""
        self.root, self._embedder, self._client, self._server = root, embedder, client, server
        self.folder = root / "documents"
        make_folder(self.folder)
        self._lock = hold(root / "lock", root)
        self._changing = threading.RLock()  # documents, memories and passages change together
        if not (root / "library.json").exists():
            about = {"version": VERSION, "collection": f"memo-{secrets.token_hex(12)}"}
            write_atomic(root / "library.json", json.dumps(about))
        self.collection = collection_of(root)
        if not self.collection:
            self.close()
            raise DamagedMemory(f"{root / 'library.json'} cannot be read.", "Delete it to have the library repaired.")
        for path in list(self.folder.iterdir()):
            if path.name.startswith(MAKING):
                self._finish_replacing(path)
            if path.name.startswith((MAKING, GONE)):
                shutil.rmtree(path, ignore_errors=True)
        entries = [read_entry(path) for path in self.folder.iterdir() if (path / "document.json").exists()]
        self.documents: dict[str, Entry] = {entry.id: entry for entry in sorted(entries, key=lambda e: e.added)}
        self._memory: Memory | None = None
        self._making: set[str] = set()

    def close(self) -> None:
        """Gives the library free for other processes."""
        if "_words" in self.__dict__:
            self._words.close()
        self._lock.close()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish_replacing(self, path: Path) -> None:
        """Where `commit` was interrupted after the new memory had replaced the old one: what is known of it follows."""
        about, home = path / "document.json", self.folder / path.name.removeprefix(MAKING)
        if about.exists() and not (path / "memory.safetensors").exists() and home.exists():
            about.replace(home / about.name)

    @property
    def index(self) -> PassageIndex:
        """The passages in Chroma, brought in line with the documents when first used."""
        with self._changing:
            return self._index

    @cached_property
    def _index(self) -> PassageIndex:
        client = self._client or connect(self.root / "chroma", self._server)
        embedder = self._embedder()
        index = PassageIndex(client, self.collection, embedder)
        about = json.loads((self.root / "library.json").read_text())
        if about.get("embedder", embedder.name) != embedder.name:  # vectors of another embedder mean nothing to this
            index.drop()
            index = PassageIndex(client, self.collection, embedder)
        write_atomic(self.root / "library.json", json.dumps(about | {"embedder": embedder.name}))
        wanted = self._sizes()
        if index.count() != sum(wanted.values()):
            # a process was killed while it put passages in or took them out, or the database was lost
            there = index.sizes()
            for document in set(there) - set(wanted):
                index.remove(document)
            for document, count in wanted.items():
                if there.get(document) != count:
                    index.remove(document)
                    index.add(self.passages(document))
        return index

    @property
    def words(self) -> WordIndex:
        """The words of the passages, brought in line with the documents when first used."""
        with self._changing:
            return self._words

    @cached_property
    def _words(self) -> WordIndex:
        index, wanted = WordIndex(self.root / "words.sqlite"), self._sizes()
        there = index.sizes()
        for document in {*there, *wanted}:
            if there[document] != wanted.get(document, 0):
                index.put(document, self.passages(document) if document in wanted else [])
        return index

    def _sizes(self) -> dict[str, int]:
        """How many passages each document has."""
        return {one: len(json.loads(self._read(one, "document.json"))["passages"]) for one in self.documents}

    def entry(self, document: str) -> Entry:
        """A document by its id. Raises UnknownDocument, as it does when it was deleted in the middle of a question."""
        if document not in self.documents:
            raise UnknownDocument("A document was deleted meanwhile.", "Ask again.")
        return self.documents[document]

    def text(self, document: str) -> str:
        """The text of a document. Raises UnknownDocument."""
        return self._read(document, "text.txt")

    def _read(self, document: str, name: str) -> str:
        self.entry(document)
        try:
            return (self.folder / document / name).read_bytes().decode()
        except FileNotFoundError:
            raise UnknownDocument("A document was deleted meanwhile.", "Ask again.") from None

    def text_of(self, document: str, start: int, end: int) -> str:
        return self.text(document)[start:end]

    def passages(self, document: str) -> list[Passage]:
        """The passages of a document, in its order."""
        return passages_of(document, json.loads(self._read(document, "document.json")), self.text(document))

    def rank(
        self, queries: Sequence[Query], depth: int = DEPTH, among: Sequence[str] | None = None
    ) -> list[list[dict[str, Any]]]:
        """For each query the passages it finds by meaning and words, best first: where they lie, their similarity.

        among: only of these documents; None: all that are ready. One that is being put in is not to be found yet.
        """
        among = list(self.documents) if among is None and self._making else among
        deep = max(depth, DEPTH)  # both know of the other's best, whatever is asked for
        by_meaning, by_words = self.index.rank(queries, deep, among), self.rank_words(queries, deep, among)
        return [mixed(*found, depth) for found in zip(by_meaning, by_words, strict=True)]

    def rank_words(
        self, queries: Sequence[Query], depth: int = DEPTH, among: Sequence[str] | None = None
    ) -> list[list[dict[str, Any]]]:
        """The same by their words alone."""
        among = list(self.documents) if among is None else among
        return [self.words.rank(" ".join(query.texts), depth, among) for query in queries]

    def find(self, name: str) -> Entry:
        """A document by its id or its name.

        Raises:
            UnknownDocument: there is none, or several of that name.
        """
        if name in self.documents:
            return self.documents[name]
        named = [entry for entry in list(self.documents.values()) if entry.name == name]
        if len(named) == 1:
            return named[0]
        if named:
            ids = ", ".join(entry.id for entry in named)
            raise UnknownDocument(f"Several documents are named {name!r}.", f"Give the id: {ids}.")
        raise UnknownDocument(f"There is no document {name!r} here.", "See: memo documents")

    @contextmanager
    def making(self, document: str) -> Iterator[Path]:
        """A folder to put a document together in; it is gone afterwards, whether `commit` was reached or not."""
        path = self.folder / f"{MAKING}{document}"
        path.mkdir(exist_ok=True)
        (path / "making").touch()  # `commit` takes it away
        self._making.add(document)
        try:
            yield path
        finally:
            self._making.discard(document)
            committed = not (path / "making").exists()
            shutil.rmtree(path, ignore_errors=True)
            if not committed:
                before = self.passages(document) if document in self.documents else []  # made anew: what it was stays
                self.words.put(document, before)
                self.index.remove(document)
                self.index.add(before)

    def add_passages(
        self, document: str, passages: list[Passage], vectors: Sequence[Sequence[float]] | None = None
    ) -> Iterator[int]:
        """Makes the passages of a document searchable, batch by batch; yields how many are in Chroma.

        vectors: theirs, where they were embedded elsewhere.
        """
        self.words.put(document, passages)
        self.index.remove(document)
        for start in range(0, len(passages), BATCH):
            some = slice(start, start + BATCH)
            self.index.add(passages[some], vectors and vectors[some])
            yield min(start + BATCH, len(passages))

    def commit(
        self, path: Path, document: Document, passages: list[Passage], memory: DocumentMemory, seconds: float
    ) -> Entry:
        """Makes the document in `path` (see `making`) real, in place of an earlier one of the same id."""
        from memo import memory_file

        added = self.documents[document.id].added if document.id in self.documents else time.time()
        entry = Entry(
            document.id, document.name, memory.tokens, memory.slots, memory.ratio, memory.bytes, memory.full_bytes,
            round(seconds, 3), added, len(document.pages), len(document.text),
        )  # fmt: skip
        about = {"entry": asdict(entry), "passages": [(p.start, p.end, p.page) for p in passages]}
        (path / "text.txt").write_bytes(document.text.encode())
        memory_file.save(memory, path / "memory.safetensors")
        write_atomic(path / "document.json", json.dumps(about, ensure_ascii=False))
        self.place(path, entry, memory)
        return entry

    def place(self, path: Path, entry: Entry, memory: DocumentMemory | None = None) -> None:
        """Makes the document whose files are all in `path` (see `making`) real. memory: what they hold, if known."""
        home = self.folder / entry.id
        with self._changing:
            (path / "making").unlink()
            if home.exists():  # the same document at another ratio: file by file, each whole at any moment
                for name in ("memory.safetensors", "document.json"):
                    (path / name).replace(home / name)
            else:
                path.rename(home)
            self.documents[entry.id] = entry
            if self._memory is not None and memory is not None:
                self._memory.add(memory)
            elif self._memory is not None and entry.id in self._memory:
                self._memory.remove(entry.id)  # it is loaded anew

    def replace_memory(self, memory: DocumentMemory) -> None:
        """Puts another memory of the same text in place of a document's.

        Raises:
            UnknownDocument: the document is not there any more.
        """
        from memo import memory_file

        with self._changing:
            self.entry(memory.document)
            memory_file.save(memory, self.folder / memory.document / "memory.safetensors")
            if self._memory is not None:
                self._memory.add(memory)

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Within it files of memories may be put in place of others; all are loaded anew afterwards."""
        with self._changing:
            try:
                yield
            finally:
                self._memory = None

    def remove(self, document: str) -> None:
        """Takes a document out: its text, its memory, its passages."""
        with self._changing:
            index, words, gone = self.index, self.words, self.folder / f"{GONE}{document}"
            del self.documents[document]
            (self.folder / document).rename(gone)
            if self._memory is not None and document in self._memory:
                self._memory.remove(document)
            words.put(document, [])
            try:
                index.remove(document)
            finally:  # the files go even if the database does not answer; it is put right when the library is opened
                shutil.rmtree(gone)

    def memory(self, model: MemoryModel) -> Memory:
        """The memories of all documents, loaded when first asked for.

        Raises:
            DamagedMemory, WrongModel: a document's memory cannot be used; the error names the document.
        """
        from memo.memory import Memory

        with self._changing:
            memory = self._memory if self._memory is not None and self._memory.model is model else Memory(model)
            for document in self.documents:
                if document not in memory:
                    memory.add(self.load(document, model))
            self._memory = memory
            return memory

    def load(self, document: str, model: MemoryModel) -> DocumentMemory:
        """The stored memory of one document.

        Raises:
            DamagedMemory, WrongModel: it cannot be used; the error names the document.
        """
        from memo import memory_file

        name = self.entry(document).name
        try:
            memory = memory_file.load(self.folder / document / "memory.safetensors", model)
        except MemoryFileError as error:
            raise type(error)(f"{name}: {error.message}", error.hint) from None
        if memory.text_sha256 != text_hash(self.text(document)):
            raise DamagedMemory(f"{name}: its text is not the one that was memorized.", "Memorize it again.")
        return memory

    def destroy(self) -> None:
        """Deletes everything: documents, memories, the collection in Chroma."""
        try:
            if self.documents or "_index" in self.__dict__:  # not for a visitor who only looked
                self.index.drop()
        finally:  # the files go even if the database does not answer
            self.documents.clear()
            self._memory = None
            self.close()
            shutil.rmtree(self.root, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Makes a folder, if it is not there. Raises SettingsError if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"The folder {folder} cannot be made: {error.strerror}.", "Choose another.") from None


def read_entry(path: Path) -> Entry:
    """What is known of the document in a folder. Raises DamagedMemory."""
    try:
        return Entry(**json.loads((path / "document.json").read_text(encoding="utf-8"))["entry"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        told = f"What is known of the document in {path} cannot be read."
        raise DamagedMemory(told, "Delete that folder, then memorize the document again.") from error


def passages_of(document: str, about: dict[str, Any], text: str) -> list[Passage]:
    """The passages of a document. about: what its document.json says."""
    return [Passage(document, start, end, page, text[start:end]) for start, end, page in about["passages"]]


def collection_of(root: Path) -> str:
    """The name of a library's collection in Chroma; empty if what is known of the library cannot be read."""
    try:
        about = json.loads((root / "library.json").read_text())
        return str(about["collection"]) if about["version"] == VERSION else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def hold(lock: Path, folder: Path) -> IO[str]:
    """An open, locked file: as long as it is open (at most as long as this process lives) the folder is ours.

    Raises:
        LibraryBusy: another process has it.
    """
    try:
        file = lock.open("w")
    except OSError as error:
        raise SettingsError(f"The folder {folder} cannot be used: {error.strerror}.", "Choose another.") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise LibraryBusy(f"{folder} is in use by another process.", "Close it there, or use another folder.") from None
    return file


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
