"""What a model still knows of a text: loss on what follows it, and how much of it the model can give back.

In: a text, and a `Context`, whatever the model has of that text: nothing, its whole cache, a memory, an evicted cache.
Out: figures. All contexts go through `score`, so they differ in their slots only:

    loss    nats per token of the 256 tokens that follow the text, -1/256 sum_i log p(x_i | context, x_<i)
    copy    "Repeat:" and the first 8 of 48 tokens of the text: the share of the other 40 that are the top prediction
    facts   the same, of the 10 of these 40 that most surprised the plain model when it read the text
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from memo.attention import Row, Slots, run
from memo.evaluate import eviction
from memo.evaluate.eviction import Prefill
from memo.memory import DocumentMemory, Memory, MemoryModel, inference
from memo.placement import surprisal

NEXT = 256  # tokens after the text that are scored
SPANS, SPAN, CUE, FACTS = 4, 48, 8, 10  # spans of a text, their tokens, how many of these are given, hard ones
NEAR = 1024  # tokens before a span that the plain model reads with it where the whole text is beyond its positions


@dataclass(frozen=True)
class Context:
    """What comes before the tokens that are scored."""

    slots: Slots | None = None
    position: int = 0  # of the next token
    start: tuple[int, ...] = ()  # tokens to begin with, where nothing was read


def nothing(model: MemoryModel) -> Context:
    """Only what the model expects at the start of a text."""
    return Context(start=tuple(model.encode("")[0]))


def remembered(memory: Memory) -> Context:
    """All documents of a memory, side by side."""
    slots = memory.compose().slots
    return Context(slots, len(slots))


def remembered_alone(model: MemoryModel, one: DocumentMemory) -> Context:
    memory = Memory(model)
    memory.add(one)
    return remembered(memory)


def score(model: MemoryModel, context: Context, ids: list[int], first: int) -> tuple[Tensor, Tensor]:
    """Feeds ids after the context. -> -log p in nats and whether it is the top prediction, of each of ids[first:]

    first: at least 1 where the context gives no token to begin with.
    """
    ids, first = [*context.start, *ids], first + len(context.start)
    tokens = torch.tensor(ids, device=model.device)
    positions = context.position + torch.arange(len(ids) - 1, device=model.device)
    row = Row(context.slots)
    with inference(model), model.recalling([row]):
        embeddings = model.model.get_input_embeddings()(tokens[None, :-1])
        hidden = run(model.model, embeddings, [row], positions[None])[0]
        logits = model.logits(hidden[first - 1 :])  # (n, V)
        return surprisal(logits, tokens[first:]).cpu(), (logits.argmax(dim=-1) == tokens[first:]).cpu()


def cut(model: MemoryModel, text: str, tokens: int) -> tuple[str, str]:
    """The text up to its first so many tokens, and the rest. The rest is empty where it has no more."""
    near = text[: 8 * tokens]  # mostly enough for them, and much less than a book
    _, offsets = model.encode(near)
    if len(offsets) <= tokens:
        near, offsets = text, model.encode(text)[1]
    at = offsets[tokens][0] if len(offsets) > tokens else len(text)
    return text[:at], text[at:]


class Case:
    """The beginning of a text, what follows it, and places in it that are to be repeated.

    tokens: how many of the text are read; encoded again on their own they may be one more or less.
    """

    def __init__(self, model: MemoryModel, name: str, text: str, tokens: int, seed: int) -> None:
        self.model, self.name, self.tokens = model, name, tokens
        self.text, rest = cut(model, text, tokens)
        self.ids = model.encode(self.text)[0]
        self.next_ids = model.encode(cut(model, rest, NEXT + 8)[0], start=False)[0][: NEXT + 1]
        places = random.Random(f"{seed} {name} {tokens}")
        first = len(model.encode("")[0])
        self.spans = [places.randrange(first, len(self.ids) - SPAN) for _ in range(SPANS)]
        self.cue = model.encode("Repeat:", start=False)[0]

    @property
    def fits(self) -> bool:
        """Whether the model's positions hold all of the text and what follows."""
        return len(self.ids) + NEXT + 1 <= self.model.max_positions

    @cached_property
    def prefill(self) -> Prefill:
        with self.model.turn:
            return eviction.prefill(self.model.model, torch.tensor(self.ids, device=self.model.device))

    @property
    def full(self) -> Context:
        return Context(self.prefill.slots, len(self.ids))

    def evicted(self, method: str, entries: int) -> Context:
        return Context(eviction.evict(self.prefill, method, entries), len(self.ids))

    @cached_property
    def hard(self) -> list[Tensor]:
        """For each span, which of its 40 tokens surprised the plain model most. (10,) each"""
        return [self._surprise(at).topk(FACTS).indices for at in self.spans]

    def _surprise(self, at: int) -> Tensor:
        first, end = at + CUE, at + SPAN
        if self.fits:
            hidden = self.prefill.hidden[first - 1 : end - 1]
            with torch.no_grad():
                logits = self.model.logits(hidden)
            return surprisal(logits, torch.tensor(self.ids[first:end], device=hidden.device)).cpu()
        before = max(0, at - min(NEAR, self.model.max_positions - SPAN))
        return score(self.model, Context(), self.ids[before:end], first - before)[0]

    def measure(self, context: Context) -> dict[str, float]:
        """loss, copy, facts."""
        loss = score(self.model, context, self.next_ids, 1)[0].mean().item()
        copied, facts = [], []
        for at, hard in zip(self.spans, self.hard, strict=True):
            _, hits = score(self.model, context, self.cue + self.ids[at : at + SPAN], len(self.cue) + CUE)
            copied.append(hits.float().mean().item())
            facts.append(hits[hard].float().mean().item())
        return {"loss": loss, "copy": sum(copied) / SPANS, "facts": sum(facts) / SPANS}
