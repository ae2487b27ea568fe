"""Speed of the Memory Decoder and of what it is compared with: ratios to the language model alone, in one process.

In: a language model, a decoder, an index over the datastore, passages to look up. Out: rows, one for each of

    base            the language model alone
    mixed           both models at every token
    knn_lm          the model, and a search of the datastore for every token
    rag             the model, a passage more in its prompt; looking that up counts as reading the prompt
    rag_refreshed   the same where another passage is put there every so many tokens: the prompt is read again then

with the seconds to read a prompt and those of each token after it, and their ratios to `base`: medians of rounds in
which all take turns, and the least and the most of any round.

Source: Memory Decoder (arXiv 2508.09874v2), figure 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from memo import knn
from memo.datastore import keeping_keys
from memo.evaluate.in_context import Passages
from memo.evaluate.turns import in_turns, middle, times
from memo.models import cache_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT = 512  # tokens
TOKENS = 16  # that are generated a round
BATCHES = (1, 8)


class System(Protocol):
    """What can be timed: ids (B, T) to read after what the cache holds -> the next tokens (B, 1), and the cache."""

    def __call__(self, ids: Tensor, cache: Any) -> tuple[Tensor, Any]: ...


@dataclass(frozen=True)
class Plain:
    """A causal language model of transformers: the LLM, or a `Mixed`."""

    model: PreTrainedModel

    def __call__(self, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        held = {} if cache is None else {cache_name(): cache}
        out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **held)
        return out.logits[:, -1:].argmax(dim=-1), out[cache_name()]


@dataclass(frozen=True)
class Searching:
    """A kNN-LM: the neighbours of the last token's key vote, p = weight p_kNN + (1 - weight) p_LLM."""

    model: PreTrainedModel
    index: knn.Index
    k: int
    temperature: float
    weight: float

    def __call__(self, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        held = {} if cache is None else {cache_name(): cache}
        with keeping_keys(self.model) as kept:
            out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **held)
        mix = (1 - self.weight) * out.logits[:, -1].float().softmax(dim=-1)  # (B, V)
        found = self.index.search(kept[0][:, -1].float().cpu().numpy(), self.k)
        rows, tokens, probabilities = (
            one.to(mix.device)
            for one in knn.as_tensors(knn.distribution(found, self.index.store.values, self.temperature))
        )
        mix.index_put_((rows, tokens), self.weight * probabilities, accumulate=True)
        return mix.argmax(dim=-1, keepdim=True), out[cache_name()]


@dataclass(frozen=True)
class WithPassage:
    """The LLM, whose prompts begin with the passage that their last `query` tokens bring up."""

    plain: Plain
    passages: Passages
    size: int  # of a passage; shorter ones are filled up, so that a batch has one length
    query: int

    def __call__(self, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        if cache is None:
            before = [np.resize(self.passages.ids[self.passages.best(row[-self.query :].cpu().numpy()) or 0], self.size)
                      for row in ids]  # fmt: skip
            passages = torch.from_numpy(np.stack(before).astype(np.int64)).to(ids.device)
            ids = torch.cat([passages, ids], dim=1)
        return self.plain(ids, cache)


def settle(ids: Tensor) -> None:
    """Waits for a GPU to be done with what made `ids`."""
    ids.sum().item()


def reading(system: System, ids: Tensor) -> Callable[[], None]:
    """Reads a prompt, to its next token."""

    def work() -> None:
        with torch.no_grad():
            settle(system(ids, None)[0])

    return work


def writing(system: System, ids: Tensor, count: int) -> Callable[[], None]:
    """Writes `count` tokens after a prompt that is read already, and takes them out of the cache again."""
    with torch.no_grad():
        first, cache = system(ids, None)

    def work() -> None:
        token, held = first, cache
        with torch.no_grad():
            for _ in range(count):
                token, held = system(token, held)
            settle(token)
        held.crop(-count)

    return work


def measure(
    systems: dict[str, System], text: np.ndarray, device: torch.device, refresh: int, repeats: int,
    prompt: int, count: int, batches: Sequence[int],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each system and batch; `systems` has "base" and "rag". text: (n,) tokens for prompts.

    refresh: tokens after which `rag_refreshed` reads its prompt again. prompt: its tokens. count: tokens written.
    """
    rows = []
    for size in batches:
        ids = torch.from_numpy(np.resize(text, (size, prompt)).astype(np.int64)).to(device)
        read = in_turns(repeats, *[reading(one, ids) for one in systems.values()])
        write = in_turns(repeats, *[writing(one, ids, count) for one in systems.values()])
        seconds = {name: ([*took], [one / count for one in wrote])
                   for name, took, wrote in zip(systems, read, write, strict=True)}  # fmt: skip
        again = [token + took / refresh for took, token in zip(*seconds["rag"], strict=True)]
        base_read, base_token = seconds["base"]
        for name, (took, token) in [*seconds.items(), ("rag_refreshed", ([], again))]:
            row: dict[str, Any] = {"system": name, "batch": size, "prompt": prompt, "tokens": count}
            if took:
                row["read"] = {"seconds": middle(took), **times(took, base_read)}
            rows.append(row | {"token": {"seconds": middle(token), **times(token, base_token)}})
    return rows
