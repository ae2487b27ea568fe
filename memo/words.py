"""Words: questions -> passages that share rare words with them, by BM25 (Robertson and Zaragoza, 2009).

In: passages to keep; later, questions and clues. Out: rankings, best first, like those of the vectors in Chroma. An
embedder knows what a passage is about; names, numbers and other scripts, which it may never have seen, are found by
their words. Kept in one SQLite file (FTS5, its k1 1.2 and b 0.75), so that documents come and go without counting anew.

    similarity(q, p) = BM25(q, p) / BM25(q, the best passage)
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from memo.cite import words
from memo.errors import BackendError
from memo.passages import Passage

ASKED = 64  # different words of a question that are looked up
TABLES = """
PRAGMA secure_delete = ON;  -- what is deleted is overwritten
CREATE TABLE IF NOT EXISTS places (id INTEGER PRIMARY KEY, document TEXT, start INTEGER, "end" INTEGER, page INTEGER);
CREATE INDEX IF NOT EXISTS documents ON places (document);
CREATE VIRTUAL TABLE IF NOT EXISTS bags USING fts5(words, tokenize = "unicode61 remove_diacritics 0");
"""
BEST = """
SELECT document, start, "end", page, -bm25(bags) FROM bags JOIN places ON places.id = bags.rowid
WHERE bags MATCH ? AND document IN (SELECT value FROM json_each(?)) ORDER BY rank LIMIT ?
"""


@contextmanager
def _kept() -> Iterator[None]:
    """SQLite's own errors as a `BackendError`."""
    try:
        yield
    except sqlite3.Error as error:
        told = f"The words of the documents cannot be kept or read: {error}."
        raise BackendError(told, "Is there room on the disk?") from error


def _opened(place: Path | None) -> sqlite3.Connection:
    """The database at `place` (None: in memory), with its tables."""
    base = sqlite3.connect(place or ":memory:", check_same_thread=False)
    try:
        base.executescript(TABLES)
    except sqlite3.Error:
        base.close()
        raise
    return base


class WordIndex:
    """The words of passages, at `place` (None: in memory). What is there and cannot be read is begun anew.

    Raises:
        BackendError: everywhere, where the file cannot be read or written.
    """

    def __init__(self, place: Path | None = None) -> None:
        self._lock = threading.Lock()
        with _kept():
            try:
                self._base = _opened(place)
            except sqlite3.DatabaseError:
                if place is None:
                    raise
                place.unlink(missing_ok=True)
                self._base = _opened(place)

    def close(self) -> None:
        with self._lock:
            self._base.close()

    def put(self, document: str, passages: Sequence[Passage]) -> None:
        """Keeps the passages of a document, in place of those it had; none: the document is gone. All or nothing."""
        with self._lock, _kept(), self._base as base, closing(base.cursor()) as cursor:
            cursor.execute("DELETE FROM bags WHERE rowid IN (SELECT id FROM places WHERE document = ?)", (document,))
            cursor.execute("DELETE FROM places WHERE document = ?", (document,))
            if cursor.rowcount:  # FTS5 only marks what is deleted, until its parts are merged
                cursor.execute("INSERT INTO bags (bags) VALUES ('optimize')")
            for passage in passages:
                place = (document, passage.start, passage.end, passage.page or 0)
                cursor.execute('INSERT INTO places (document, start, "end", page) VALUES (?, ?, ?, ?)', place)
                cursor.execute(
                    "INSERT INTO bags (rowid, words) VALUES (?, ?)", (cursor.lastrowid, " ".join(words(passage.text)))
                )

    def sizes(self) -> Counter[str]:
        """How many passages of each document are here."""
        with self._lock, _kept():
            return Counter(dict(self._base.execute("SELECT document, count(*) FROM places GROUP BY document")))

    def rank(self, text: str, depth: int, among: Iterable[str]) -> list[dict[str, Any]]:
        """Passages of the documents `among` that share a word with `text`, best first: places and similarity."""
        asked = list(dict.fromkeys(words(text)))[:ASKED]
        if not asked:
            return []
        match = " OR ".join(f'"{word}"' for word in asked)
        with self._lock, _kept():
            found = self._base.execute(BEST, (match, json.dumps(list(among)), depth)).fetchall()
        return [
            {"document": document, "start": start, "end": end, "page": page, "similarity": score / found[0][-1]}
            for document, start, end, page, score in found
        ]
