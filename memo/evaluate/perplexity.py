"""Perplexity: how well models, and mixes of them, predict held-out text.

In: models, and tokens in blocks that overlap (`memo.datastore.blocks`: window 1,024, the last 512 counted). Out: log p
of every token that counts, by each model; and from those the loss of any mix, without running a model again:

    log p(y) = log(alpha p_Mem(y) + (1 - alpha) p_LLM(y)),      perplexity = exp(-mean log p(y))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from memo.datastore import BATCH, Block, keeping_keys
from memo.train.distill import Batch, batch, part_on

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from memo.train.texts import TokenFile

ALPHAS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Read(NamedTuple):
    """What a model said of n tokens."""

    logp: np.ndarray  # (n,) float64 log p of each token, nats
    keys: np.ndarray | None  # (n, E) float16 to look up in a datastore


def read(model: PreTrainedModel, tokens: TokenFile, some: Sequence[Block], keys: bool = False) -> Read:
    """log p of every token that counts in some blocks, in their order."""
    logps, kept = [], []
    with torch.no_grad():
        for at in range(0, len(some), BATCH):
            part = batch(tokens, some[at : at + BATCH])
            places = part.places.to(model.device)
            with keeping_keys(model) as seen:
                hidden = model.base_model(input_ids=part.ids.to(model.device), use_cache=False).last_hidden_state
            logps.append(_logp(model, hidden.flatten(0, 1)[places], part))
            if keys:
                kept.append(seen[0].flatten(0, 1)[places].to(torch.float16).cpu().numpy())
    return Read(np.concatenate(logps), np.concatenate(kept) if keys else None)


def _logp(model: PreTrainedModel, hidden: torch.Tensor, part: Batch) -> np.ndarray:
    """Hidden states (n, E) before the tokens that count -> log p of those (n,)"""
    head, labels, found = model.get_output_embeddings(), part.labels.to(model.device), []
    size = part_on(model.device)
    for start in range(0, len(hidden), size):
        logits = head(hidden[start : start + size].to(head.weight.dtype)).float()
        found.append(-torch.nn.functional.cross_entropy(logits, labels[start : start + size], reduction="none"))
    return torch.cat(found).double().cpu().numpy()


def labels(tokens: TokenFile, some: Sequence[Block]) -> np.ndarray:
    """(n,) int64 the tokens that count in some blocks."""
    return np.concatenate([np.asarray(tokens.ids[block.first : block.end]) for block in some]).astype(np.int64)


def mixed(llm: np.ndarray, memory: np.ndarray, alpha: float | np.ndarray) -> np.ndarray:
    """(n,) log p of the mix."""
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.log1p(-np.asarray(alpha)) + llm, np.log(np.asarray(alpha)) + memory)


def best_alpha(llm: np.ndarray, memory: np.ndarray) -> float:
    """The alpha of `ALPHAS` with which a mix predicts best."""
    return min(ALPHAS, key=lambda alpha: -mixed(llm, memory, alpha).mean())


def perplexity(logp: np.ndarray) -> float:
    return float(np.exp(-logp.mean()))
