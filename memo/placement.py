"""Where windows end, and where in a window memory tokens sit: at its most surprising tokens.

In: -log p(x_i | x_<i) of a window's tokens, which reading them gives for nothing. Out: the places of the memory tokens,
and the characters each stands for.

Ours; MemoRAG sets them at every beta-th token. A number counts as one word:

    worth_i = -log p(x_i | x_<i),    of digits the sum over all digits of their number
    places  = the k tokens of the highest worth, in text order
"""

from __future__ import annotations

import torch
from torch import Tensor


def windows(tokens: int, window: int) -> list[tuple[int, int]]:
    """A text of so many tokens in windows of `window` at most: where each starts and ends.

    What is left over at the end and the last whole window are made two of equal length: by itself a short rest would
    have but a few slots, for words that surprise as much as any.
    """
    whole, rest = divmod(tokens, window)
    ends = [window * (number + 1) for number in range(whole)]
    if whole and rest:
        ends[-1] = ends[-1] - window + -(-(window + rest) // 2)
    if rest:
        ends.append(tokens)
    return list(zip([0, *ends], ends, strict=False))


def slot_count(tokens: int, ratio: int) -> int:
    """How many memory tokens a window of so many tokens has: one for each `ratio` of them or a part of it."""
    return -(-tokens // ratio)


def surprisal(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p(x_i) for logits (T, V) that predict ids (T,). (T,), nats."""
    return torch.nn.functional.cross_entropy(logits.float(), ids, reduction="none")


def place(surprise: Tensor, count: int) -> Tensor:
    """The `count` most surprising places of each text, in text order. (B, l) -> (B, count)"""
    return surprise.topk(count).indices.sort().values


def as_numbers(surprise: Tensor, digits: Tensor) -> Tensor:
    """Tokens of digits that follow each other are one number: each counts as much as all of them together.

    One by one digits surprise little, ln 10 at most, and none would get a slot: but a number is of use only as a whole.
    surprise, digits: (B, l) -> (B, l)
    """
    goes_on = digits & torch.nn.functional.pad(digits[:, :-1], (1, 0))
    run = (~goes_on).cumsum(dim=1)  # which run each token belongs to; one that is no digit is a run of its own
    # the first token of a text surprises infinitely, and it alone: else it might lose its slot to the rest of a number
    finite = surprise.where(surprise.isfinite(), 0)
    total = surprise.new_zeros(len(surprise), surprise.shape[1] + 1).scatter_add(1, run, finite)
    return total.gather(1, run).maximum(surprise)


def slot_spans(offsets: list[tuple[int, int]], places: list[int], start: int, end: int) -> list[tuple[int, int]]:
    """Slot -> characters: each from where its token begins to where the next slot's begins; they tile [start, end)."""
    begins = [offsets[i][0] for i in places]
    begins[0] = start
    return list(zip(begins, [*begins[1:], end], strict=True))
