"""What the memory of a document holds, to be looked at: its slots, where recalling looks, how well it is kept.

In: a `DocumentMemory` and its text. Out: the tokens that have a slot (`slots_of`); the attention on the slots while
each token of a clue was generated (`recalled`); the loss of every token with the memory, without it, and with all of
the text (`losses`); the prompt that recalls one part of the text (`part_prompt`), and the words two texts share.
Nothing here changes a memory.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memo.attention import Row, run
from memo.clues import READER, collect
from memo.errors import UnknownDocument
from memo.events import Clue
from memo.generate import Prompt
from memo.memory import inference
from memo.placement import slot_count, windows

if TYPE_CHECKING:
    from memo.documents import Page
    from memo.generate import Stream
    from memo.memory import Composed, DocumentMemory, MemoryModel

WORDS = 400  # of a part, where a text has no pages
NEAR = 300  # characters within which it may go on to the end of a sentence
CUE = 8  # words of a part that are given to have the rest recalled
REPEAT = "Repeat the text word for word, from here on."
# a piece of a word counts too: scripts without spaces would make one word of a whole page
_PIECE = re.compile(r"\S{1,20}")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？\n])\s+")
# in Chinese and Japanese each sign counts as a word
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


# --- slots -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """One memory token: the characters it stands for, and those of the token it sits at, where that is known."""

    start: int
    end: int
    token: tuple[int, int] | None


def slots_of(memory: DocumentMemory, offsets: Sequence[tuple[int, int]]) -> list[Slot]:
    """The slots of a memory, in text order. offsets: the character spans of the text's tokens.

    A slot's characters begin at its token. Only those of the first slot of a window begin with the window: which of
    their tokens it sits at is not kept, and known only where there is but one, or where the window begins the text.
    """
    counts = (slot_count(stop - start, memory.ratio) for start, stop in windows(memory.tokens, memory.window))
    firsts = set(accumulate(counts))
    begins = [start for start, _ in offsets]
    slots = []
    for number, (start, end) in enumerate(memory.spans.tolist()):
        first, after = bisect_left(begins, start), bisect_left(begins, end)
        known = first < len(offsets) and (number not in firsts or after - first <= 1)
        slots.append(Slot(start, end, offsets[first] if known else None))
    return slots


# --- parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A page of a text, or some hundred words of it: its number, from 1, and its characters."""

    number: int
    start: int
    end: int


def parts_of(text: str, pages: Sequence[Page] = (), words: int = WORDS) -> list[Part]:
    """The pages of a text that hold something; where it has none, parts of about so many words."""
    if pages:
        return [Part(page.number, page.start, page.end) for page in pages if text[page.start : page.end].strip()]
    starts = {0}
    for at in [match.start() for match in _PIECE.finditer(text)][words::words]:
        end = _SENTENCE_END.search(text, at, at + NEAR)
        starts.add(end.end() if end else at)
    return [Part(number, *span) for number, span in enumerate(pairwise(sorted(starts | {len(text)})), 1)]


# --- where a clue looks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """A generated token. mass: (layers, M) attention on all slots while it was chosen, the mean over heads; None for
    the first token of an answer, which was chosen while the prompt was read."""

    text: str
    mass: Tensor | None


@dataclass(frozen=True)
class Recalled:
    """A clue, token by token."""

    clue: Clue
    tokens: tuple[Said, ...]

    def mass(self, token: int = -1) -> Tensor | None:
        """(layers, M) attention while that token was generated; of -1 the mean over all of the clue."""
        if token >= 0:
            return self.tokens[token].mass
        every = [said.mass.float() for said in self.tokens if said.mass is not None]
        return torch.stack(every).mean(dim=0) if every else None


def recalled(streams: Mapping[str, Stream], question: str, memory: Composed) -> list[Recalled]:
    """The clues in finished streams (see `clues.prompts`), each with its tokens."""
    found = []
    for clue in collect(dict(streams), question, memory):
        stream = streams[clue.kind]
        start = stream.text.find(clue.text)
        end = start + len(clue.text)
        ends = [len(stream.prompt.prefix), *(mark for mark, _ in stream.marks)]
        said = []
        for i, (a, b) in enumerate(pairwise(ends)):
            if a < end and b > start:
                # token i was chosen while token i - 1 looked
                said.append(Said(stream.text[a:b], stream.mass[i - 1] if 0 < i <= len(stream.mass) else None))
        found.append(Recalled(clue, tuple(said)))
    return found


def of_document(mass: Tensor, memory: Composed, document: str) -> Tensor:
    """The columns of (layers, M) that are a document's slots: (layers, m) in float32.

    Raises:
        UnknownDocument: it has no place in this memory.
    """
    if document not in memory.documents:
        raise UnknownDocument("This document was not among those that were looked at.", "Recall again.")
    return mass[:, memory.owners == memory.documents.index(document)].float()


# --- how well it is kept ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Losses:
    """-log p of the tokens of one window but its first, in nats. first: the number of the first of them in the text.

    memory: given the memory of what came before the window. none: nothing before it. full: all of the text before it;
    None where the text is longer than the model's positions.
    """

    first: int
    memory: Tensor
    none: Tensor
    full: Tensor | None


def losses(model: MemoryModel, memory: DocumentMemory, text: str) -> Iterator[Losses]:
    """Reads a text again, window by window, and compares three ways to know what came before.

    The model's turn is held for one pass over a window at a time; closing the generator ends it.
    """
    ids = model.encode(text)[0]
    full = Row() if len(ids) <= model.max_positions else None
    held = 0
    for start, stop in windows(len(ids), memory.window):
        part = torch.tensor([ids[start:stop]], device=model.device)
        slots = model.slots(memory.keys[:, None, :, :held], memory.values[:, None, :, :held]) if held else None
        found = [_loss(model, part, row) if row else None for row in (Row(slots), Row(), full)]
        held += slot_count(stop - start, memory.ratio)
        yield Losses(start + 1, *found)  # type: ignore[arg-type]


def _loss(model: MemoryModel, ids: Tensor, row: Row) -> Tensor:
    """-log p of the tokens of a window (1, l) but the first, read behind what is in the row. (l - 1,)"""
    with inference(model), model.recalling([row]):
        hidden = run(model.model, model.model.get_input_embeddings()(ids), [row])
        return model.surprise(hidden[:, :-1], ids[:, 1:])[0].cpu()


def smoothed(values: Tensor, width: int) -> Tensor:
    """The mean of so many neighbouring values, at every place; of fewer at both ends. (n,) -> (n,)"""
    sums = torch.nn.functional.pad(values.double().cumsum(dim=0), (1, 0))
    places = torch.arange(len(values))
    low, high = (places - width // 2).clamp(min=0), (places + width - width // 2).clamp(max=len(values))
    return ((sums[high] - sums[low]) / (high - low)).float()


# --- one part, recalled ----------------------------------------------------------------------------------------------


def part_prompt(text: str, part: Part, memory: Composed, max_tokens: int) -> tuple[Prompt, int]:
    """The prompt that has a part recalled, and where in the text that begins: the words before it are given."""
    given = [match.end() for match in _PIECE.finditer(text, part.start, part.end)][:CUE]
    at = given[-1] if given else part.start
    cue = text[part.start : at].lstrip()
    messages = (("system", READER), ("user", REPEAT))
    return Prompt(messages, max_tokens, prefix=f'"{cue}', slots=memory.slots), at


def words(text: str) -> list[re.Match[str]]:
    """The words of a text."""
    return list(_WORD.finditer(text))


def in_common(one: str, other: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The words that two texts have in common, in the same order: their characters in each."""
    a, b = words(one), words(other)
    folded = [[match[0].casefold() for match in found] for found in (a, b)]
    blocks = SequenceMatcher(None, *folded, autojunk=False).get_matching_blocks()
    return (
        [a[block.a + i].span() for block in blocks for i in range(block.size)],
        [b[block.b + i].span() for block in blocks for i in range(block.size)],
    )
