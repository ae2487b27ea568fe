"""What a Memory Decoder is taught: the kNN-LM's distribution at every token of the corpus, sparse, on disk.

In: an index over a datastore, k and a temperature. Out: a folder with an Arrow file a shard of the store, two lists an
entry (tokens, probabilities), and `Targets`, which reads any stretch of them without loading the rest.

Source: Memory Decoder (arXiv 2508.09874v2), section 3.1. Sparse from end to end: a row has a few tokens, not the whole
vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from memo.datastore import Datastore
from memo.errors import DatastoreError
from memo.knn import Index, Sparse, distribution
from memo.models import write_atomic

PART = 4096  # entries that are looked up at a time


def target_path(folder: Path, shard: int) -> Path:
    return folder / f"targets-{shard:05d}.arrow"


def write_targets(
    made: Index, k: int, temperature: float, folder: Path, process: tuple[int, int] = (0, 1),
    told: Callable[[int, int], None] = lambda done, of: None,
) -> Targets:  # fmt: skip
    """p_kNN of every entry of the store, without itself, as Arrow files of a shard each; what is there is kept.

    Raises:
        DatastoreError: the folder holds targets that were made otherwise.
    """
    store, about = made.store, {"k": k, "temperature": temperature, "model": made.store.model, "size": made.store.size}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "targets.json"
    if path.exists() and json.loads(path.read_text()) != about:
        raise DatastoreError(f"{folder} holds other targets.", "Choose another folder, or delete it.")
    write_atomic(path, json.dumps(about))
    for shard in range(process[0], store.shards, process[1]):
        if not target_path(folder, shard).exists():
            keys, first = store.keys(shard), store.first_entry(shard)
            parts = []
            for at in range(0, len(keys), PART):
                own = np.arange(first + at, first + min(at + PART, len(keys)))
                found = distribution(made.search(keys[at : at + PART], k, own), store.values, temperature)
                parts.append(pa.record_batch({
                    "tokens": pa.ListArray.from_arrays(found.ends.astype(np.int32), found.tokens.astype(np.int32)),
                    "probabilities": pa.ListArray.from_arrays(
                        found.ends.astype(np.int32), found.probabilities.astype(np.float16)),
                }))  # fmt: skip
            temporary = target_path(folder, shard).with_suffix(".tmp")
            with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, parts[0].schema) as writer:
                for part in parts:
                    writer.write_batch(part)
            temporary.replace(target_path(folder, shard))
        told(shard + 1, store.shards)
    return Targets(store, folder)


class Targets:
    """Sparse targets on disk, memory-mapped when they are first read: other processes may still be writing theirs."""

    def __init__(self, store: Datastore, folder: Path) -> None:
        self.store, self.folder = store, folder
        self._firsts = [store.first_entry(shard) for shard in range(store.shards)]

    @cached_property
    def _tables(self) -> list[pa.Table]:
        paths = [target_path(self.folder, shard) for shard in range(self.store.shards)]
        try:
            return [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]
        except (OSError, pa.ArrowInvalid) as error:
            raise DatastoreError(f"The targets in {self.folder} are not whole.", "Make them again.") from error

    def of(self, first: int, end: int) -> Sparse:
        """Those of entries first .. end - 1, which are of one shard, in float32 and summing to one.

        Raises:
            DatastoreError: a file is damaged or missing.
        """
        shard = int(np.searchsorted(self._firsts, first, side="right")) - 1
        part = self._tables[shard].slice(first - self._firsts[shard], end - first).combine_chunks()
        lists = part.column("tokens").combine_chunks()
        sizes = np.asarray(lists.value_lengths())
        ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        tokens = np.asarray(lists.flatten()).astype(np.int64)
        held = np.asarray(part.column("probabilities").combine_chunks().flatten()).astype(np.float32)
        totals = np.bincount(np.repeat(np.arange(len(sizes)), sizes), held, len(sizes))
        return Sparse(ends, tokens, held / np.repeat(totals, sizes).astype(np.float32))
