"""Distilling: a small decoder learns what a kNN-LM would say, and what the corpus says.

In: a `Datastore` with `Targets`, blocks of the corpus. Out: two losses per block, means over the tokens that count:

    kl   L = sum_t KL(p_kNN(. | x_<t) || p_Mem(. | x_<t)) = sum_t sum_v p_kNN(v) (log p_kNN(v) - log p_Mem(v))
    ce   L = -sum_t log p_Mem(x_t | x_<t)
         L = beta kl + (1 - beta) ce

Source: Memory Decoder (arXiv 2508.09874v2), equations 4 to 6. The targets stay sparse: a term of the sum exists only
where p_kNN is not zero.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from memo.datastore import Block, Datastore, padded
from memo.errors import SettingsError
from memo.knn import Sparse, as_tensors, joined
from memo.targets import Targets
from memo.train import loop
from memo.train.loop import drawn
from memo.train.recipe import Distilling
from memo.train.texts import TokenFile

if TYPE_CHECKING:
    from accelerate import Accelerator

PART, PART_DEVICE = 512, 4096  # tokens whose logits are made at a time, on a CPU and on an accelerator


@dataclass(frozen=True)
class Batch:
    """B blocks: ids (B, T), and of the tokens that count, one block after the other: where they are predicted (places
    in the flat B * T), which they are, and p_kNN of each."""

    ids: Tensor
    places: Tensor  # (n,)
    labels: Tensor  # (n,)
    counts: tuple[int, ...]  # of each block
    targets: Sparse | None  # n rows; None where there is none

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def tokens(self) -> int:
        return len(self.labels)


def part_on(device: torch.device) -> int:
    """How many tokens' logits are made at a time."""
    return PART if device.type == "cpu" else PART_DEVICE


def batch(tokens: TokenFile, some: Sequence[Block], known: Sequence[Sparse] = ()) -> Batch:
    """Blocks, and what is to be learnt of them. known: p_kNN of the tokens that count, of each block."""
    ids = padded(tokens, some)
    where = [torch.arange(block.first - block.start, block.end - block.start) for block in some]
    places = [row * ids.shape[1] + inside - 1 for row, inside in enumerate(where)]
    labels = [ids[row, inside] for row, inside in enumerate(where)]
    counts = tuple(len(one) for one in labels)
    return Batch(ids, torch.cat(places), torch.cat(labels), counts, joined(known) if known else None)


def sparse_kl(logits: Tensor, rows: Tensor, tokens: Tensor, probabilities: Tensor) -> Tensor:
    """KL(p || softmax(logits)) of each row. logits (n, V); p as (z,) rows, tokens, probabilities -> (n,), nats."""
    logits = logits.float()
    logq = logits[rows, tokens] - logits.logsumexp(dim=-1)[rows]
    terms = probabilities * (probabilities.log() - logq)
    return torch.zeros(len(logits), device=logits.device).index_add(0, rows, terms)


def losses(decoder: PreTrainedModel, batch: Batch, plan: Distilling) -> dict[str, Tensor]:
    """`loss`, what is minimized, and its parts, per block. (B,) each"""
    device = decoder.device
    hidden = decoder.base_model(input_ids=batch.ids.to(device), use_cache=False).last_hidden_state
    hidden = hidden.flatten(0, 1)[batch.places.to(device)]  # (n, E)
    labels = batch.labels.to(device)
    ends = torch.from_numpy(batch.targets.ends) if batch.targets is not None else None
    sparse = [one.to(device) for one in as_tensors(batch.targets)] if batch.targets is not None else None
    head, size = decoder.get_output_embeddings(), part_on(device)

    def of(start: int) -> tuple[Tensor, Tensor]:
        part = slice(start, start + size)
        logits = head(hidden[part]).float()  # (size, V)
        ce = torch.nn.functional.cross_entropy(logits, labels[part], reduction="none")
        if sparse is None or ends is None:
            return torch.zeros_like(ce), ce
        rows, tokens, probabilities = (one[ends[start] : ends[min(start + size, len(ends) - 1)]] for one in sparse)
        return sparse_kl(logits, rows - start, tokens, probabilities), ce

    # in parts, and made again for the gradient: (n, V) logits would be the largest tensor of all
    graph = torch.is_grad_enabled() and hidden.requires_grad
    starts = range(0, len(hidden), size)
    found = [checkpoint(of, start, use_reentrant=False) if graph else of(start) for start in starts]
    kl, ce = (torch.cat(part) for part in zip(*found, strict=True))
    parts = {name: torch.stack([one.mean() for one in values.split(batch.counts)])
             for name, values in (("kl", kl), ("ce", ce))}  # fmt: skip
    if sparse is None:
        return {"loss": parts["ce"], "ce": parts["ce"]}
    return {"loss": plan.kl_weight * parts["kl"] + (1 - plan.kl_weight) * parts["ce"], **parts}


def groups(store: Datastore, targets: Targets | None, plan: Distilling) -> Callable[[int], list[Batch]]:
    """`micro_batches` for the loop: blocks in random order, each once an epoch; those of a step go by length.

    Raises:
        SettingsError: the corpus has fewer blocks than a step, or kl_weight wants targets that are not given.
    """
    if plan.kl_weight and targets is None:
        raise SettingsError("A plan with a kl_weight needs targets of the kNN-LM.")
    every = store.blocks
    if len(every) < plan.batch:
        told = f"The corpus has {len(every)} blocks; a step reads {plan.batch}."
        raise SettingsError(told, "Give more text, or a smaller batch.")

    def micro_batches(step: int) -> list[Batch]:
        some = sorted((every[i] for i in drawn(len(every), plan, step)), key=lambda block: block.end - block.start)
        made = []
        for start in range(0, plan.batch, plan.micro):
            part = some[start : start + plan.micro]
            known = [targets.of(*store.entries(block)) for block in part] if plan.kl_weight and targets else ()
            made.append(batch(store.tokens, part, known))
        random.Random(f"{plan.seed} order {step}").shuffle(made)
        return made

    return micro_batches


def train(
    model: PreTrainedModel, weights: nn.Module, store: Datastore, targets: Targets | None, plan: Distilling,
    folder: Path, about: dict[str, Any], accelerator: Accelerator,
    told: Callable[[dict[str, Any]], None] = lambda line: None,
) -> None:  # fmt: skip
    """Trains `weights`, which are part of `model`, on the store's blocks, or goes on where it was (`loop.train`)."""
    of = partial(losses, model, plan=plan)
    loop.train(weights, groups(store, targets, plan), of, plan, folder, about, accelerator, told)
