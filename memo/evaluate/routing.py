"""A router for the mix: alpha of every token, learnt by the loss of the mix; both models stay as they are.

In: a `Mixed` with a `Router` for its alpha, blocks of held-out text. Out: the router trained, and log p of every token
that counts in other blocks, with the alpha that each had.

    L = -mean_t log(alpha_t p_Mem(x_t | x_<t) + (1 - alpha_t) p_LLM(x_t | x_<t)),      alpha_t = Router(what both saw)

Source: ours; the paper's alpha (arXiv 2508.09874v2, equation 7) is one number for all tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from memo.datastore import Block
from memo.decoder import Mixed, Router, interpolate
from memo.evaluate.adaptation import Rivals, size_of
from memo.train import loop
from memo.train.distill import batch, part_on
from memo.train.recipe import Plan
from memo.train.texts import TokenFile

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Seen:
    """What both models made of the n tokens that count in a block: their hidden states before each, and which it is."""

    llm: Tensor  # (n, E)
    memory: Tensor  # (n, F)
    labels: Tensor  # (n,)

    def __len__(self) -> int:
        return 1

    @property
    def tokens(self) -> int:
        return len(self.labels)


def made(llm: PreTrainedModel, decoder: PreTrainedModel, seed: int) -> Mixed:
    """The two mixed by a router that has learnt nothing yet."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        router = Router(llm.config.hidden_size, decoder.config.hidden_size)
    return Mixed(llm, decoder, router.to(llm.device))


def look(mixed: Mixed, tokens: TokenFile, block: Block) -> Seen:
    """Both models read a block."""
    part = batch(tokens, [block])
    with torch.no_grad():
        llm, memory = mixed.hidden(part.ids.to(mixed.device))
    places = part.places.to(mixed.device)
    return Seen(llm[0, places], memory[0, places], part.labels.to(mixed.device))


def routed(mixed: Mixed, seen: Seen) -> tuple[Tensor, Tensor]:
    """log p of each token by the mix, and its alpha. (n,), (n,); only the router has a gradient."""
    router, logps, alphas = mixed.alpha, [], []
    assert isinstance(router, Router)
    size = part_on(mixed.device)
    for at in range(0, seen.tokens, size):
        part = slice(at, at + size)
        llm, memory, labels = seen.llm[part], seen.memory[part], seen.labels[part, None]
        with torch.autocast(mixed.device.type, enabled=False):  # in bfloat16 an alpha near 1 would be 1
            with torch.no_grad():
                both = mixed.both(llm, memory)
            alpha = router(llm, memory, *both)  # (n, 1)
        logps.append(interpolate(both[0].gather(-1, labels), both[1].gather(-1, labels), alpha)[:, 0])
        alphas.append(alpha[:, 0])
    return torch.cat(logps), torch.cat(alphas)


def train(
    mixed: Mixed, tokens: TokenFile, some: Sequence[Block], rivals: Rivals, seed: int, folder: Path,
    about: dict[str, Any], accelerator: Accelerator,
) -> int:  # fmt: skip
    """Trains the router on some blocks, or goes on where it was. -> how many parameters it has"""
    assert isinstance(mixed.alpha, Router)
    plan = Plan(steps=rivals.router_steps, batch=1, micro=1, learning_rate=rivals.router_rate, save_every=50, seed=seed)
    seen = [look(mixed, tokens, block) for block in some]

    def losses(one: Seen) -> dict[str, Tensor]:
        return {"loss": -routed(mixed, one)[0].mean()[None]}

    def micro_batches(step: int) -> list[Seen]:
        return [seen[i] for i in loop.drawn(len(seen), plan, step)]

    loop.train(mixed.alpha, micro_batches, losses, plan, folder, about, accelerator)
    return size_of(mixed.alpha)


def read(mixed: Mixed, tokens: TokenFile, some: Sequence[Block]) -> tuple[np.ndarray, np.ndarray]:
    """log p of every token that counts, and its alpha. (n,), (n,)"""
    with torch.no_grad():
        pairs = [routed(mixed, look(mixed, tokens, block)) for block in some]
    logps, alphas = (torch.cat(part).double().cpu().numpy() for part in zip(*pairs, strict=True))
    return logps, alphas


def halves(some: Sequence[Block]) -> tuple[list[Block], Callable[[np.ndarray], np.ndarray]]:
    """Every second block, and what takes the tokens of those out of an array of all (n,)."""
    counts = [block.end - block.first for block in some]
    first = np.repeat(np.arange(len(some)) % 2 == 0, counts)
    return list(some[::2]), lambda values: values[first]
