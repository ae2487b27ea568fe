"""kNN-LM: the nearest entries of a datastore, and the next-token distribution they vote for.

In: a `Datastore`, and keys to look up. Out: neighbours (distance, entry), and from them sparse distributions

    p_kNN(y | x)  ~  sum over neighbours i with value y of  exp(-d(x, k_i) / tau),    d: squared Euclidean

Each entry may be kept from finding itself, and the same passage told twice: entries are left out by their number and by
the tokens before them (`Datastore.contexts`), not by their rank.

Source: Memory Decoder (arXiv 2508.09874v2), equation 2 and section 3.1; kNN-LM (arXiv 1911.00172), equations 1 to 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from memo.datastore import Datastore
from memo.errors import DatastoreError
from memo.models import write_atomic

FLAT = 20_000  # entries up to which every key is compared
COARSE = 2_000_000  # entries up to which cells keep whole keys (float16); beyond, product quantization
CODE = 64  # bytes a key takes then
SAMPLE = 256  # entries that recall is measured on
RECALL = 0.95  # of the exact neighbours that the index has to find
MORE = 32  # neighbours searched beyond k, for those that are left out
LEAST = 1e-4  # probabilities below are left out of a distribution


class Neighbours(NamedTuple):
    """The nearest entries of each of n queries, nearest first. Where fewer were found: distance inf, entry -1."""

    distances: np.ndarray  # (n, k) float32, squared
    entries: np.ndarray  # (n, k) int64


class Sparse(NamedTuple):
    """n distributions over the vocabulary, the zeros left out: row i has `tokens[ends[i]:ends[i + 1]]`."""

    ends: np.ndarray  # (n + 1,) int64
    tokens: np.ndarray  # (z,) int64
    probabilities: np.ndarray  # (z,) float32

    def __len__(self) -> int:
        return len(self.ends) - 1

    def rows(self) -> np.ndarray:
        """(z,) int64 the row of each token"""
        return np.repeat(np.arange(len(self)), np.diff(self.ends))

    def of(self, tokens: np.ndarray) -> np.ndarray:
        """(n,) float32 the probability of one token a row"""
        hit = self.tokens == tokens[self.rows()]
        return np.bincount(self.rows()[hit], self.probabilities[hit], len(self)).astype(np.float32)


# --- index -----------------------------------------------------------------------------------------------------------


def kind(size: int) -> str:
    """The faiss factory string for so many entries."""
    if size <= FLAT:
        return "Flat"
    cells = 1 << max(6, round(np.log2(size**0.5 * 2)))  # about 2 sqrt(N)
    return f"IVF{cells},SQfp16" if size <= COARSE else f"OPQ{CODE},IVF{cells},PQ{CODE}"


@dataclass
class Index:
    """A faiss index over a datastore; on an accelerator every key is compared (`knn_device.Matrix`)."""

    store: Datastore
    faiss: Any
    kind: str
    recall: float  # of the exact k nearest, measured on SAMPLE entries
    k: int  # that recall was measured for
    probes: int  # cells looked into

    def search(self, keys: np.ndarray, k: int, own: np.ndarray | None = None) -> Neighbours:
        """The k nearest entries of each key (n, E). own: (n,) the entries that the keys are of, which are left out."""
        wanted = k if own is None else k + MORE
        queries = np.ascontiguousarray(keys, dtype=np.float32)
        distances, entries = self.faiss.search(queries, min(wanted, self.store.size))
        if own is not None:
            return without_own(self.store, Neighbours(distances, entries), own, k)
        return filled(Neighbours(distances, entries), k)


def filled(found: Neighbours, k: int) -> Neighbours:
    """With k columns; entries that faiss did not find are at distance inf."""
    distances = np.where(found.entries < 0, np.inf, found.distances).astype(np.float32)
    missing = max(0, k - distances.shape[1])
    return Neighbours(
        np.pad(distances, ((0, 0), (0, missing)), constant_values=np.inf)[:, :k],
        np.pad(found.entries, ((0, 0), (0, missing)), constant_values=-1)[:, :k],
    )


def without_own(store: Datastore, found: Neighbours, own: np.ndarray, k: int) -> Neighbours:
    """The first k that are neither the entry itself nor of the same passage told elsewhere."""
    there = found.entries >= 0
    contexts = store.contexts
    alike = (contexts[found.entries] == contexts[own][:, None]) & (contexts[own] != 0)[:, None]
    out = ~there | alike | (found.entries == own[:, None])
    order = np.argsort(out, axis=1, kind="stable")  # those left out go last, the others keep their order
    distances = np.take_along_axis(np.where(out, np.inf, found.distances), order, axis=1)
    entries = np.take_along_axis(np.where(out, -1, found.entries), order, axis=1)
    return filled(Neighbours(distances, entries), k)


def index(
    store: Datastore, k: int = 64, told: Callable[[str], None] = lambda line: None,
    device: torch.device | None = None,
) -> Index:  # fmt: skip
    """The store's index, made and kept beside it on the first call; it looks into as many cells as `RECALL` needs.

    device: on an accelerator nothing is made or kept: all keys are held there.

    Raises:
        DatastoreError: a file of the store, or the index, is damaged.
    """
    if device is not None and device.type != "cpu":
        from memo.knn_device import Matrix

        return Index(store, Matrix(store, device), "Flat", 1.0, k, 0)
    import faiss

    path, about = store.folder / "index.faiss", store.folder / "index.json"
    if about.exists():
        try:
            loaded = Index(store, faiss.read_index(str(path)), **json.loads(about.read_text()))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            told = "The index of the datastore is damaged."
            raise DatastoreError(told, "Delete index.json to make it anew.") from error
        if loaded.probes:
            faiss.extract_index_ivf(loaded.faiss).nprobe = loaded.probes
        return loaded
    made = faiss.index_factory(store.dimension, kind(store.size))
    if not made.is_trained:
        told("training the index")
        made.train(_sample(store, 40 * faiss.extract_index_ivf(made).nlist))
    for shard in range(store.shards):
        made.add(store.keys(shard).astype(np.float32))
        told(f"indexed {shard + 1} of {store.shards} shards")
    result = Index(store, made, kind(store.size), 1.0, k, 0)
    if result.kind != "Flat":
        _tune(result)
    temporary = path.with_suffix(".tmp")
    faiss.write_index(made, str(temporary))
    temporary.replace(path)
    write_atomic(about, json.dumps({n: getattr(result, n) for n in ("kind", "recall", "k", "probes")}))
    return result


def _sample(store: Datastore, count: int) -> np.ndarray:
    """(about count, E) float32 keys from all shards alike"""
    each = -(-count // store.shards)
    drawn, found = np.random.default_rng(0), []
    for shard in range(store.shards):
        keys = store.keys(shard)
        found.append(keys[np.sort(drawn.choice(len(keys), min(each, len(keys)), replace=False))].astype(np.float32))
    return np.concatenate(found)


def exact(store: Datastore, keys: np.ndarray, k: int) -> Neighbours:
    """The k nearest entries by comparing every key, shard by shard: slow, and what an index is measured by."""
    import faiss

    best = Neighbours(np.zeros((len(keys), 0), np.float32), np.zeros((len(keys), 0), np.int64))
    for shard in range(store.shards):
        part = faiss.IndexFlatL2(store.dimension)
        part.add(store.keys(shard).astype(np.float32))
        distances, entries = part.search(np.ascontiguousarray(keys, dtype=np.float32), min(k, part.ntotal))
        distances = np.concatenate([best.distances, distances], axis=1)
        entries = np.concatenate([best.entries, entries + store.first_entry(shard)], axis=1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        best = Neighbours(np.take_along_axis(distances, order, 1), np.take_along_axis(entries, order, 1))
    return filled(best, k)


def _tune(made: Index) -> None:
    """Looks into twice as many cells until recall is `RECALL`, or all are looked into."""
    import faiss

    cells = faiss.extract_index_ivf(made.faiss)
    keys = _sample(made.store, SAMPLE)[:SAMPLE]
    true = exact(made.store, keys, made.k)
    made.probes = 8
    while True:
        cells.nprobe = made.probes = min(made.probes, cells.nlist)
        found = made.search(keys, made.k)
        pairs = zip(found.entries, true.entries, strict=True)
        made.recall = float(np.mean([len(set(a) & set(b)) / made.k for a, b in pairs]))
        if made.recall >= RECALL or made.probes == cells.nlist:
            return
        made.probes *= 2


# --- distributions ---------------------------------------------------------------------------------------------------


def distribution(found: Neighbours, values: np.ndarray, temperature: float) -> Sparse:
    """p_kNN of each query. values: (N,) the token of every entry. A query without neighbours has an empty row."""
    there = found.entries >= 0
    nearest = np.where(there[:, :1], found.distances[:, :1], 0.0)
    weights = np.where(there, np.exp(-(np.where(there, found.distances, 0.0) - nearest) / temperature), 0.0)
    tokens = np.where(there, values[found.entries], -1)
    order = np.argsort(tokens, axis=1, kind="stable")
    tokens, weights = np.take_along_axis(tokens, order, 1), np.take_along_axis(weights, order, 1)
    begins = np.ones(tokens.shape, dtype=bool)
    begins[:, 1:] = tokens[:, 1:] != tokens[:, :-1]
    flat = np.flatnonzero(begins)
    sums = np.add.reduceat(weights.ravel(), flat) if flat.size else np.zeros(0)
    rows, tokens = flat // tokens.shape[1], tokens.ravel()[flat]
    totals = np.maximum(weights.sum(axis=1), 1e-30)
    keep = (tokens >= 0) & (sums / totals[rows] > LEAST)
    rows, tokens, sums = rows[keep], tokens[keep], sums[keep]
    totals = np.bincount(rows, sums, len(weights))
    ends = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(weights)))])
    return Sparse(ends.astype(np.int64), tokens.astype(np.int64), (sums / totals[rows]).astype(np.float32))


def mixed(voted: np.ndarray, logp: np.ndarray, weight: float) -> np.ndarray:
    """log(weight p_kNN + (1 - weight) p_LLM) of some tokens, nats. voted: p_kNN of them. logp: log p_LLM"""
    return np.log(weight * voted + (1 - weight) * np.exp(logp) + 1e-30)


@dataclass(frozen=True)
class Choice:
    """How a kNN-LM votes: chosen on held-out text by its perplexity."""

    k: int
    temperature: float
    weight: float  # of p_kNN in the mix with the model
    loss: float  # nats per token there


def choose(
    found: Neighbours, values: np.ndarray, labels: np.ndarray, logp: np.ndarray, ks: Sequence[int] = (16, 64, 256)
) -> Choice:
    """The k, temperature and weight whose mix with the model predicts held-out tokens best.

    labels: (n,) the tokens. logp: (n,) log p of them by the model alone, nats.
    """
    finite = found.distances[np.isfinite(found.distances)]
    middle = float(np.median(finite)) if finite.size else 1.0
    best: Choice | None = None
    for k in sorted({min(k, found.distances.shape[1]) for k in ks}):
        nearest = Neighbours(found.distances[:, :k], found.entries[:, :k])
        for share in (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0):
            voted = distribution(nearest, values, middle * share).of(labels)
            for weight in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6):
                loss = float(-mixed(voted, logp, weight).mean())
                if best is None or loss < best.loss:
                    best = Choice(k, middle * share, weight, loss)
    assert best is not None
    return best


def as_tensors(found: Sparse) -> tuple[Tensor, Tensor, Tensor]:
    """rows (z,), tokens (z,), probabilities (z,)"""
    return torch.from_numpy(found.rows()), torch.from_numpy(found.tokens), torch.from_numpy(found.probabilities)


def joined(parts: Sequence[Sparse]) -> Sparse:
    """The rows of all parts, one after the other."""
    ends, at = [np.zeros(1, np.int64)], 0
    for part in parts:
        ends.append(part.ends[1:] + at)
        at += int(part.ends[-1])
    return Sparse(np.concatenate(ends), np.concatenate([p.tokens for p in parts]),
                  np.concatenate([p.probabilities for p in parts]))  # fmt: skip
