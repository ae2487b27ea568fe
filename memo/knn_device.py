"""Exact search on an accelerator: every key compared, which a GPU does faster than an index on the CPU searches.

In: the keys of a datastore, queries. Out: the k nearest entries of each, as a faiss index gives them:

    |q - k|^2 = |q|^2 + |k|^2 - 2 q . k

Keys are float16, whose products TF32 computes exactly; sums are in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from memo.datastore import Datastore

SCORES = 1 << 30  # of a part of the queries that are held at a time, 4 bytes each


class Matrix:
    """All keys of a store on a device."""

    def __init__(self, store: Datastore, device: torch.device) -> None:
        self.keys = torch.cat([torch.from_numpy(store.keys(shard)).to(device) for shard in range(store.shards)]).float()
        self.squares = self.keys.square().sum(dim=1)  # (N,)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(n, E) -> squared distances (n, k), nearest first, and entries (n, k)."""
        part, found = max(1, SCORES // len(self.keys)), []
        for start in range(0, len(queries), part):
            some = torch.from_numpy(queries[start : start + part]).to(self.keys.device)
            with _tf32():
                scores = torch.addmm(self.squares, some, self.keys.T, alpha=-2)  # (part, N)
            nearest = scores.topk(k, largest=False)
            distances = (nearest.values + some.square().sum(dim=1, keepdim=True)).clamp(min=0)
            found.append((distances.cpu().numpy(), nearest.indices.cpu().numpy()))
        distances, entries = zip(*found, strict=True)
        return np.concatenate(distances), np.concatenate(entries)


@contextmanager
def _tf32() -> Iterator[None]:
    """Products of float32 in TF32, on devices that have it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
