"""Search: questions and clues -> passages, by meaning (Chroma) and by words, in one fused ranking.

In: passages to index; later, weighted queries and pointers. Out: `Found` passages within a token budget, in document
order, each with its score and what found it.

A query finds a passage by what both mean and by the words they share (`memo.words`):

    s(q, p) = cosine of their vectors + WORDS_WEIGHT BM25(q, p) / BM25(q, the best passage)

Fusion is by similarity too: score(p) = sum over rankings r of w_r s_r(p) / sum of w_r. Ranks alone would forget how
much better the first is than the second.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from memo.errors import BackendError
from memo.events import Found

if TYPE_CHECKING:
    from memo.models import Embedder
    from memo.passages import Passage

DEPTH = 40  # passages a query brings
WORDS_WEIGHT = 0.2  # chosen on train splits: squad, fairytaleqa, hotpotqa, 2wiki, musique, policyqa's test, qmsum
BATCH = 128  # passages embedded and added at a time
KEPT = 16  # collections whose index stays in memory (Chroma keeps 64, if told fewer); others are read again


@dataclass(frozen=True)
class Query:
    """label: what is said to have found a passage. texts: their mean vector is looked up."""

    label: str
    texts: tuple[str, ...]
    weight: float = 1.0


def connect(place: Path, server: str = "") -> Any:
    """A Chroma client: in this process with its files at `place`, or of the server at `server` ("http://host:port").

    Raises:
        BackendError: the server does not answer.
    """
    import chromadb
    from chromadb.config import Settings as ChromaSettings

    quiet = ChromaSettings(anonymized_telemetry=False)
    if not server:
        place.mkdir(parents=True, exist_ok=True)
        client = chromadb.PersistentClient(str(place), settings=quiet)
        _keep_few(client._server)
        return client
    address = urlsplit(server if "//" in server else f"//{server}")
    try:
        return chromadb.HttpClient(
            host=address.hostname or "", port=address.port or 8000, ssl=address.scheme == "https", settings=quiet
        )
    except Exception as error:  # chromadb raises ValueError, httpx's and its own errors here
        raise BackendError("The Chroma server does not answer.", "Check MEMO_CHROMA and that it is running.") from error


def _keep_few(server: Any) -> None:
    """Chroma in this process keeps the index of every collection that was used, deleted ones too, and four open files
    of each, until they are a fifth of the files that the system allows: a server of visitors would only ever grow."""
    if server.hnsw_cache_size > KEPT:
        server.hnsw_cache_size = KEPT
        server.stop()
        server.start()


@contextmanager
def _answering() -> Iterator[None]:
    """Chroma's own errors, and those of the network to its server, as a `BackendError`."""
    try:
        yield
    except Exception as error:
        raise BackendError("The passage database (Chroma) does not answer as it should.", "Try again.") from error


def place_of(passage: Passage) -> dict[str, Any]:
    """Where a passage lies, as Chroma keeps it and rankings carry it. page: 0 where there are none."""
    return {"document": passage.document, "start": passage.start, "end": passage.end, "page": passage.page or 0}


class PassageIndex:
    """One Chroma collection: the vectors of a library's passages, and which characters of which document they are.

    Raises:
        BackendError: everywhere, where the database is out of reach or the collection is gone.
    """

    _creating = threading.Lock()  # two collections made at the same moment can trip over Chroma's set-up

    def __init__(self, client: Any, name: str, embedder: Embedder) -> None:
        self.client, self.name, self.embedder = client, name, embedder
        with self._creating, _answering():
            # an index that is not on disk cannot be read again once others have taken its place in memory
            hnsw = {"space": "cosine", "sync_threshold": 1, "batch_size": 1}
            self.collection = client.get_or_create_collection(
                name, embedding_function=None, configuration={"hnsw": hnsw}
            )

    def add(self, passages: Sequence[Passage], vectors: Sequence[Sequence[float]] | None = None) -> None:
        """Embeds (unless their `vectors` are given) and stores passages; those already there are replaced."""
        if not passages:
            return
        if vectors is None:
            vectors = self.embedder.encode([p.text for p in passages])
        with _answering():
            self.collection.upsert(
                ids=[p.id for p in passages],
                embeddings=vectors,
                metadatas=[place_of(p) for p in passages],
            )

    def remove(self, document: str) -> None:
        """Takes all passages of a document out; harmless if there are none."""
        with _answering():
            self.collection.delete(where={"document": document})

    def drop(self) -> None:
        """Deletes the whole collection, and the vectors that Chroma in this process leaves on disk without it."""
        with _answering():
            left = self._folders()
            self.client.delete_collection(self.name)
            for folder in left:
                shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """Where Chroma keeps the vectors; nowhere here, if it is a server."""
        settings = self.client.get_settings()
        if not settings.is_persistent:
            return []
        place, asked = Path(settings.persist_directory), "SELECT id FROM segments WHERE collection = ?"
        with suppress(sqlite3.Error), closing(sqlite3.connect(place / "chroma.sqlite3")) as base:
            return [place / name for (name,) in base.execute(asked, (str(self.collection.id),))]
        return []  # the collection goes all the same

    def count(self) -> int:
        with _answering():
            return self.collection.count()

    def documents(self) -> set[str]:
        """Ids of all documents that have passages here."""
        return set(self.sizes())

    def sizes(self) -> Counter[str]:
        """How many passages of each document are here."""
        with _answering():
            return Counter(m["document"] for m in self.collection.get(include=["metadatas"])["metadatas"])

    def vectors(self, passages: Sequence[Passage]) -> list[list[float]] | None:
        """The stored vectors of passages, in their order; None if one of them is not here."""
        with _answering():
            found = self.collection.get(ids=[p.id for p in passages], include=["embeddings"])
        there = dict(zip(found["ids"], found["embeddings"], strict=True))
        return [there[p.id].tolist() for p in passages] if len(there) == len(passages) else None

    def rank(
        self, queries: Sequence[Query], depth: int = DEPTH, among: Sequence[str] | None = None
    ) -> list[list[dict[str, Any]]]:
        """For each query its nearest passages, best first: their metadata and the similarity to the query.

        among: only of these documents.
        """
        if not queries or not self.count() or (among is not None and not among):
            return [[] for _ in queries]
        flat = [text for query in queries for text in query.texts]
        vectors, means, at = self.embedder.encode(flat), [], 0
        for query in queries:
            group = vectors[at : at + len(query.texts)]
            means.append([sum(column) / len(group) for column in zip(*group, strict=True)])
            at += len(query.texts)
        where = None if among is None else {"document": {"$in": list(among)}}
        with _answering():
            found = self.collection.query(
                query_embeddings=means, n_results=depth, where=where, include=["metadatas", "distances"]
            )
        return [
            [{**hit, "similarity": 1 - distance} for hit, distance in zip(hits, distances, strict=True)]
            for hits, distances in zip(found["metadatas"], found["distances"], strict=True)
        ]


def mixed(by_meaning: list[dict[str, Any]], by_words: list[dict[str, Any]], depth: int) -> list[dict[str, Any]]:
    """What a query finds by both, best first. A passage that only its words find is taken to be as near in meaning as
    the last that was found so: nearer it cannot be."""
    last = by_meaning[-1]["similarity"] if by_meaning else 0.0
    found = {(hit["document"], hit["start"]): hit for hit in by_meaning}
    for hit in by_words:
        key = (hit["document"], hit["start"])
        near = found[key]["similarity"] if key in found else last
        found[key] = {**hit, "similarity": near + WORDS_WEIGHT * hit["similarity"]}
    return sorted(found.values(), key=lambda hit: -hit["similarity"])[:depth]


def point(strengths: Sequence[float], passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """A ranking from where a question looked: passages by strength (up to 1), best first; empty for no strength."""
    if not any(strengths):
        return []
    order = sorted(zip(strengths, passages, strict=True), key=lambda pair: -pair[0])[:DEPTH]
    return [{**place_of(passage), "similarity": strength} for strength, passage in order]


class Ranked(NamedTuple):
    """A passage in a fused ranking."""

    hit: dict[str, Any]
    score: float
    found_by: tuple[str, ...]


def fuse(rankings: Sequence[tuple[str, float, list[dict[str, Any]]]]) -> list[Ranked]:
    """Rankings (label, weight, passages with their similarity, best first) -> one, best first.

    A passage that a ranking does not hold is taken to be as similar as its last: more it cannot be. What found a
    passage is the ranking, or the clue that its hit carries.
    """
    rankings = [(label, weight, hits) for label, weight, hits in rankings if hits]
    total = sum(weight for _, weight, _ in rankings) or 1.0
    where = {(hit["document"], hit["start"]): hit for *_, hits in rankings for hit in hits}
    scores = dict.fromkeys(where, 0.0)
    labels: dict[tuple[str, int], list[str]] = {key: [] for key in where}
    for label, weight, hits in rankings:
        there = {(hit["document"], hit["start"]): hit["similarity"] for hit in hits}
        last = hits[-1]["similarity"]
        for key in scores:
            scores[key] += weight / total * there.get(key, last)
        for hit in hits[:5]:
            key, by = (hit["document"], hit["start"]), hit.get("clue", label)
            if by not in labels[key]:
                labels[key].append(by)
    return [
        Ranked(where[key], round(scores[key], 4), tuple(labels[key]) or (_closest(key, rankings),))
        for key in sorted(scores, key=lambda k: -scores[k])
    ]


def within(
    ranked: Sequence[Ranked], text_of: Callable[[str, int, int], str], count: Callable[[str], int], budget: int,
    order: Sequence[str] = (),
) -> tuple[Found, ...]:  # fmt: skip
    """The best passages that fit `budget` tokens, in document order.

    order: documents in the order they shall appear. The best passage is always taken, however long.
    """
    chosen, used = [], 0
    for hit, score, found_by in ranked:
        text = text_of(hit["document"], hit["start"], hit["end"])
        size = count(text)
        if chosen and used + size > budget:
            continue
        used += size
        chosen.append(Found(hit["document"], hit["start"], hit["end"], hit["page"] or None, text, score, found_by))
        if used >= 0.9 * budget:
            break
    ranks = {document: i for i, document in enumerate(order)}
    return tuple(sorted(chosen, key=lambda f: (ranks.get(f.document, len(ranks)), f.start)))


def _closest(key: tuple[str, int], rankings: Sequence[tuple[str, float, list[dict[str, Any]]]]) -> str:
    """The ranking in which a passage stands highest."""
    places = [
        (rank, hit.get("clue", label)) for label, _, hits in rankings for rank, hit in enumerate(hits)
        if (hit["document"], hit["start"]) == key
    ]  # fmt: skip
    return min(places)[1]
