"""Pre-training: the memory learns to keep what the text after it needs, and to give back what was read.

In: pieces of texts, n windows of l tokens each, in a batch of B. Out: two losses per text.

    next     L = -sum_t log p(x_t | memory of the earlier windows, x_<t of this one)
             MemoRAG (arXiv 2409.05591v3), section 2.3.2, equation 13
    repeat   L = -sum_t log p(s_t | memory of the windows read, "Repeat:", s_<t), s a stretch of the text, its first
             words given. Ours: `next` alone is content with the gist and gets every name wrong.

Gradients flow through the memory tokens of the whole chain of windows. With `through` in the plan they flow through the
text's own reading too and `next` is of every window but the first, as in the paper; without it `next` is of the last
window alone, read behind the memory of the others: less to compute.

The ratio of each window is drawn, and where in a piece a new document begins: memories are made one by one and put
side by side when they are used, so the model must learn to tell them apart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch
from torch import Tensor

from memo.attention import Row, Slots, run
from memo.errors import SettingsError
from memo.memory import MemoryModel
from memo.train.recipe import Pretraining
from memo.train.texts import Piece, TokenFile, batches, pieces

REPEAT = "Repeat:"


@dataclass(frozen=True)
class Batch:
    """B pieces of n windows, and everything that was drawn for them."""

    ids: Tensor  # (B, n * l)
    window: int
    ratios: tuple[int, ...]  # of each window
    begins: tuple[bool, ...]  # whether a window is the first of a document
    spans: Tensor  # (B, S) where each stretch to be repeated starts
    span: int  # its tokens
    given: int  # how many of them are given

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return self.ids.numel()

    def part(self, start: int, end: int) -> Batch:
        """Some of the pieces."""
        return replace(self, ids=self.ids[start:end], spans=self.spans[start:end])


def begin_windows(windows: int, parted: float, draw: random.Random) -> tuple[bool, ...]:
    """Which windows begin a document: the first; with probability `parted` about half of the others too.

    The last of several goes on, else there would be no next token after a memory.
    """
    some = draw.random() < parted
    begins = [i == 0 or (some and draw.random() < 0.5) for i in range(windows)]
    begins[-1] = windows == 1
    return tuple(begins)


def make(tokens: TokenFile, drawn_pieces: list[Piece], plan: Pretraining, draw: random.Random) -> Batch:
    """Draws ratios, beginnings and stretches for some pieces of as many windows each."""
    windows = drawn_pieces[0].windows
    length = windows * plan.window
    ids = torch.stack([tokens.piece(piece.start, length) for piece in drawn_pieces])
    ratios = tuple(draw.choice(plan.ratios) for _ in range(windows))
    begins = begin_windows(windows, plan.parted, draw)
    span = draw.randint(*plan.span)
    kept = plan.kept(windows)
    spans = [[draw.randrange(kept * plan.window - span + 1) for _ in range(plan.spans * kept)] for _ in drawn_pieces]
    return Batch(ids, plan.window, ratios, begins, torch.tensor(spans), span, draw.randint(*plan.given))


def read(
    reader: MemoryModel, windows: Sequence[Tensor], ratios: Sequence[int], begins: Sequence[bool],
    through_text: bool = True,
) -> tuple[Slots, list[Tensor]]:  # fmt: skip
    """Memorizes B texts in step. windows: (B, l) each. -> all their slots; the surprise (B, l) of every window

    A window that begins a document is read without what was before it; its slots follow the others all the same.
    """
    every = alone = last = None
    surprises, one = [], not any(begins[1:])
    for part, ratio, begin in zip(windows, ratios, begins, strict=True):
        if begin:
            alone = last = None
        found = reader.read_window(part, alone, ratio, last, through_text)
        alone, last = reader.extended(alone, found.keys, found.values), found.next_logits
        # the same slots, but behind those of the documents before
        every = alone if one else reader.extended(every, found.keys, found.values)
        surprises.append(found.surprise)
    assert every is not None
    return every, surprises


def behind(reader: MemoryModel, slots: Slots, rows: Sequence[Tensor]) -> list[Tensor]:
    """Reads several sequences in one pass; each sees the slots and itself. (B, n) each -> hidden (B, n, E) each"""
    sizes = [row.shape[1] for row in rows]
    sequence = Row(slots)
    positions = torch.cat([torch.arange(size, device=reader.device) for size in sizes]) + sequence.position
    itself = torch.block_diag(*[torch.ones(size, size, device=reader.device).tril() for size in sizes]).bool()
    visible = torch.cat([itself.new_ones(len(itself), sequence.position), itself], dim=1)  # (n, M + n)
    embeddings = reader.model.get_input_embeddings()(torch.cat(list(rows), dim=1))
    with reader.recalling([sequence]):
        return list(run(reader.model, embeddings, [sequence], positions[None], visible).split(sizes, dim=1))


def next_loss(surprises: Sequence[Tensor], begins: Sequence[bool]) -> Tensor | None:
    """Mean -log p of the windows that have a memory before them. (B,), None where no window has."""
    after = [surprise for surprise, begin in zip(surprises, begins, strict=True) if not begin]
    return torch.cat(after, dim=1).mean(dim=1) if after else None


def last_loss(reader: MemoryModel, slots: Slots, window: Tensor) -> Tensor:
    """Mean -log p of a window behind the memory of those before it, but for its first token. (B, l) -> (B,)"""
    (hidden,) = behind(reader, slots, [window])
    return reader.surprise(hidden[:, :-1], window[:, 1:]).mean(dim=1)


def repeat_loss(reader: MemoryModel, slots: Slots, stretches: Tensor, given: int) -> Tensor:
    """-log p of each stretch after the memory, without its `given` tokens. (B, S, span) -> (B, S, span - given)"""
    batch, count, _ = stretches.shape
    cue = torch.tensor(reader.encode(REPEAT, start=False)[0], device=stretches.device)
    rows = torch.cat([cue.expand(batch, count, -1), stretches], dim=2)  # (B, S, c + span)
    hidden = torch.stack(behind(reader, slots, rows[:, :, :-1].unbind(dim=1)), dim=1)  # (B, S, c + span - 1, E)
    first = len(cue) + given
    scored = reader.surprise(hidden[:, :, first - 1 :].flatten(0, 1), rows[:, :, first:].flatten(0, 1))
    return scored.view(batch, count, -1)


def losses(reader: MemoryModel, batch: Batch, plan: Pretraining) -> dict[str, Tensor]:
    """`loss`, what is minimized, and its parts, per text. (B,) each"""
    ids, device = batch.ids.to(reader.device), reader.device
    windows = ids.split(batch.window, dim=1)
    kept = plan.kept(len(windows))
    slots, surprises = read(reader, windows[:kept], batch.ratios[:kept], batch.begins[:kept], bool(plan.through))
    found: dict[str, Tensor] = {}
    if kept < len(windows):
        found["next"] = last_loss(reader, slots, windows[-1])
    elif plan.next_weight and (after := next_loss(surprises, batch.begins)) is not None:
        found["next"] = after
    if plan.spans:
        places = batch.spans.to(device)[:, :, None] + torch.arange(batch.span, device=device)
        stretches = ids[:, None, :].expand(-1, places.shape[1], -1).gather(2, places)
        found["repeat"] = repeat_loss(reader, slots, stretches, batch.given).mean(dim=(1, 2))
    total = plan.next_weight * found.get("next", torch.zeros(len(ids), device=device))
    return {"loss": total + found["repeat"] if "repeat" in found else total, **found}


def groups(tokens: TokenFile, plan: Pretraining) -> Callable[[int], list[Batch]]:
    """`micro_batches` for the loop: which pieces a step reads, and what is drawn for them, follows from its number.

    Raises:
        SettingsError: the texts are too short for a single batch.
    """

    @lru_cache(maxsize=2)
    def epoch(number: int) -> list[list[Piece]]:
        found = pieces(tokens, plan.window, plan.windows, plan.least, plan.seed, number)
        return batches(found, plan.batch, plan.seed + number)

    @cache
    def steps(number: int) -> int:  # epochs differ in length by a little
        return len(epoch(number))

    if not steps(0):
        told = f"The texts do not fill a batch: {plan.batch} pieces of {plan.least} windows of {plan.window} tokens."
        raise SettingsError(told, "Give more text, or a smaller batch, window or least.")

    def micro_batches(step: int) -> list[Batch]:
        number, at = 0, step
        while at >= steps(number):
            at -= steps(number)
            number += 1
        draw = random.Random(f"{plan.seed} step {step}")
        drawn = make(tokens, epoch(number)[at], plan, draw)
        return [drawn.part(i, i + plan.micro) for i in range(0, plan.batch, plan.micro)]

    return micro_batches
