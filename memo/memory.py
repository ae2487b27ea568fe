"""The memory: a document read once, window by window, into the K and V of a few memory tokens.

In: a text. Out: `DocumentMemory`, position-free K and V with the character span each memory token (slot) stands for;
`Memory`, any set of them put side by side for the model to look at.

Source: MemoRAG (arXiv 2409.05591v3), section 2.3.2. For each window of l tokens and a ratio beta:

    1. the l raw tokens pass through the frozen model, over the memory so far;
    2. k = ceil(l / beta) memory tokens, sitting at the most surprising of the l tokens, pass with the memory weights;
       each sees the memory so far, the raw tokens before its place, and itself;
    3. the raw K, V are dropped; the memory tokens' K, V are added to the memory.

Ours: where they sit (`memo.placement`), and that the first token of a text always keeps a slot, since every later token
leans on it (attention sink).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from memo.attention import MemoryWeights, Row, Slots, beside, memory_projections, rotate, run
from memo.errors import MemoryTooLong, SettingsError, UnknownDocument, WrongModel
from memo.models import fingerprint, untrusted
from memo.placement import as_numbers, place, slot_count, slot_spans, surprisal, windows
from memo.turn import Turn

if TYPE_CHECKING:
    from memo.generate import Prompt

RATIOS = (1, 2, 4, 8, 16, 32, 64)
PART = 64  # tokens whose logits are made at a time
RESERVE = 1024  # positions kept free behind a memory, for a question and what is generated (a quarter at most)


@dataclass(frozen=True)
class DocumentMemory:
    """What is kept of one document. L layers, J key-value heads, M slots, head size D."""

    document: str
    keys: Tensor  # (L, J, M, D), at position 0
    values: Tensor  # (L, J, M, D)
    spans: Tensor  # (M, 2) the characters each slot stands for; together they tile the text that was read
    tokens: int
    ratio: int
    window: int
    model: str  # fingerprint of the frozen weights
    weights: str  # fingerprint of the memory weights
    text_sha256: str = ""
    last_logits: Tensor | None = field(default=None, repr=False)  # (V,) the prediction of what comes next, to append

    @property
    def slots(self) -> int:
        return self.keys.shape[2]

    @property
    def bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    @property
    def full_bytes(self) -> int:
        """What the plain KV cache of the same text would take."""
        return self.bytes // max(1, self.slots) * self.tokens


@dataclass(frozen=True)
class Reading:
    """Progress: tokens read so far, of how many, into how many slots at which ratio."""

    done: int
    total: int
    slots: int
    ratio: int


class Window(NamedTuple):
    """One window of B texts, read. k memory tokens."""

    keys: Tensor  # (L, B, J, k, D), at position 0
    values: Tensor  # (L, B, J, k, D)
    places: Tensor  # (B, k) the tokens of the window they sit at
    surprise: Tensor  # (B, l) -log p of each token, nats
    next_logits: Tensor  # (B, V) the prediction of what follows


class MemoryModel:
    """A frozen language model with memory weights: reads documents, and lends itself to recalling."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, weights: MemoryWeights | None = None
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._given = weights
        self.fingerprint = fingerprint(model)
        self.max_positions: int = model.config.max_position_embeddings
        self.reserve = min(RESERVE, self.max_positions // 4)
        self.turn = Turn()
        self._plain = untrusted(tokenizer)

    @cached_property
    def weights(self) -> MemoryWeights:
        """The memory weights; made when first needed, for a model that only generates needs none."""
        return self._given or MemoryWeights(self.model).requires_grad_(False)

    @cached_property
    def weights_fingerprint(self) -> str:
        return fingerprint(self.weights)

    @cached_property
    def digits(self) -> Tensor:
        """Which tokens are nothing but digits. (V,)"""
        count = self.model.get_input_embeddings().num_embeddings
        texts = self.tokenizer.convert_ids_to_tokens(list(range(min(count, len(self.tokenizer)))))
        # "Ġ" and "▁" stand for the space before a word
        found = [text is not None and text.lstrip("Ġ▁").isdecimal() for text in texts]
        return torch.tensor(found + [False] * (count - len(found)), device=self.device)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode(self, text: str, start: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a document's text and their character spans; special tokens in it are taken as text.

        start: put before it what the model expects at the start of a text (a BOS token, for those that have one).
        """
        encoding = self._plain.encode(text, add_special_tokens=start)
        return encoding.ids, encoding.offsets

    def capacity(self, window: int) -> int:
        """How many slots one document may have: the positions left beside a window or a question."""
        return self.max_positions - max(window, self.reserve)

    def fitting_ratio(self, tokens: int, ratio: int, window: int) -> int:
        """The wanted ratio, or the next higher one at which the text fits the model's positions.

        Raises:
            MemoryTooLong: not even the highest does. SettingsError: the window alone is longer than the positions.
        """
        if self.capacity(window) <= 0:
            told = f"A window of {window:,} tokens leaves no room in {self.max_positions:,} positions."
            raise SettingsError(told, "Lower MEMO_WINDOW.")
        for beta in (ratio, *(r for r in RATIOS if r > ratio)):
            # every window has ceil(l / beta) slots
            if -(-tokens // window) * slot_count(window, beta) <= self.capacity(window):
                return beta
        limit = self.capacity(window) // -(-window // RATIOS[-1]) * window
        raise MemoryTooLong(
            f"The text has {tokens:,} tokens; this model can memorize {limit:,} at most.", "Split it into parts."
        )

    def memorize(
        self, text: str, document: str, ratio: int = 8, window: int = 512, after: DocumentMemory | None = None,
        text_sha256: str = "",
    ) -> Iterator[Reading | DocumentMemory]:  # fmt: skip
        """Reads a text; yields `Reading` before each window and after the last, then the `DocumentMemory`.

        Closing the generator cancels between windows. `after`: a memory that this text continues; where that ended at
        the end of a window and a window at least follows, the result is that of reading both in one, at the same ratio.

        Raises:
            MemoryTooLong: the text does not fit the model's positions at any ratio.
            WrongModel: `after` was made by another model or other memory weights.
        """
        if after:
            self.check(after)
        ids, offsets = self.encode(text, start=after is None)
        held = after.slots if after else 0
        beta = ratio if after else self.fitting_ratio(len(ids), ratio, window)
        cuts = windows(len(ids), window)
        if held + sum(slot_count(stop - start, beta) for start, stop in cuts) > self.capacity(window):
            raise MemoryTooLong("The memory that is to be continued is full.", "Memorize the new text as a document.")
        shift = int(after.spans[-1, 1]) if after else 0
        slots = self.slots(after.keys[:, None], after.values[:, None]) if after else None
        last = after.last_logits[None].to(self.device) if after and after.last_logits is not None else None
        keys, values, spans = ([after.keys], [after.values], [after.spans]) if after else ([], [], [])
        for start, stop in cuts:
            yield Reading(start, len(ids), held, beta)
            part = torch.tensor(ids[start:stop], device=self.device)
            with torch.no_grad(), self.turn:
                read = self.read_window(part[None], slots, beta, last)
                slots = self.extended(slots, read.keys, read.values)
            last, places = read.next_logits, read.places[0]
            keys.append(read.keys[:, 0].cpu())
            values.append(read.values[:, 0].cpu())
            begin = offsets[start][0] if start else 0
            end = offsets[stop][0] if stop < len(ids) else len(text)
            tiles = slot_spans(offsets[start:stop], places.tolist(), begin, end)
            spans.append(torch.tensor(tiles, dtype=torch.int64) + shift)
            held += len(places)
        yield Reading(len(ids), len(ids), held, beta)
        yield DocumentMemory(
            document, torch.cat(keys, dim=2), torch.cat(values, dim=2), torch.cat(spans),
            len(ids) + (after.tokens if after else 0), beta, window, self.fingerprint, self.weights_fingerprint,
            text_sha256, None if last is None else last[0].cpu(),
        )  # fmt: skip

    def read_window(
        self, ids: Tensor, slots: Slots | None, ratio: int, last_logits: Tensor | None, through_text: bool = True
    ) -> Window:
        """The two passes over one window of B texts that are read in step (one, but for training). ids: (B, l)

        last_logits: (B, V) the prediction of the first token; None at the start of a text.
        through_text: whether gradients, where they are wanted, also flow through pass 1.
        """
        row = Row(slots)
        embeddings = self.model.get_input_embeddings()(ids)  # (B, l, E)
        first = row.position
        with torch.set_grad_enabled(torch.is_grad_enabled() and through_text):
            hidden = run(self.model, embeddings, [row])  # (B, l, E)
            # the first token of a text has nothing before it: it always gets a slot, and serves as the attention sink
            start = torch.full_like(ids[:, 0], torch.inf, dtype=torch.float32)  # (B,)
            if last_logits is not None:
                start = surprisal(last_logits, ids[:, 0])
            surprise = torch.cat([start[:, None], self.surprise(hidden[:, :-1], ids[:, 1:])], dim=1)  # (B, l)
            next_logits = self.logits(hidden[:, -1])
        worth = as_numbers(surprise.detach(), self.digits[ids])
        places = place(worth, slot_count(ids.shape[1], ratio))  # (B, k)
        with memory_projections(self.model, self.weights):
            at = embeddings.gather(1, places[:, :, None].expand(-1, -1, embeddings.shape[2]))  # (B, k, E)
            inputs = (at + self.weights.vector).to(at.dtype)
            run(self.model, inputs, [row], places + first, beside(row, places))
        layers = range(len(self.weights.layers))
        pairs = [row.own(layer, start=ids.shape[1]) for layer in layers]  # (B, J, k, D) each
        keys = torch.stack([rotate(self.model, k, places + first, back=True) for k, _ in pairs])
        return Window(keys, torch.stack([v for _, v in pairs]), places, surprise, next_logits)

    def surprise(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """-log p of the tokens that hidden states predict. (B, T, E), (B, T) -> (B, T), nats."""

        def of(part: slice) -> Tensor:
            # flat: a slice of several texts is not contiguous, and the product would copy the whole vocabulary's matrix
            logits = self.logits(hidden[:, part].flatten(0, 1))
            return surprisal(logits, ids[:, part].flatten()).view(len(ids), -1)

        # in parts, and made again for the gradient: (B, T, V) logits would be the largest tensor of all
        graph = torch.is_grad_enabled() and hidden.requires_grad
        parts = [slice(start, start + PART) for start in range(0, ids.shape[1], PART)]
        found = [checkpoint(of, part, use_reentrant=False) if graph else of(part) for part in parts]
        return torch.cat(found, dim=1) if found else hidden.new_empty(len(ids), 0, dtype=torch.float32)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., E) -> next-token logits (..., V)."""
        return self.model.get_output_embeddings()(hidden)

    def row(self, prompt: Prompt) -> Row:
        """A sequence that starts behind the prompt's slots."""
        return Row(prompt.slots, prompt.watch)

    def recalling(self, rows: list[Row]) -> AbstractContextManager[None]:
        """Within it those of the rows that are behind a memory are read with the adapter, if the weights have one."""
        remembering = [i for i, row in enumerate(rows) if row.remembers]
        if not remembering or self.weights.adapter is None:
            return nullcontext()
        some = torch.tensor(remembering, device=self.device) if len(remembering) < len(rows) else None
        return self.weights.adapter.on(self.model, some)

    def hidden(self, ids: Tensor, rows: list[Row]) -> Tensor:
        """Reads T tokens of one row, or one token of each of B rows. ids (B, T) -> the last hidden states (B, E)."""
        with self.recalling(rows):
            return run(self.model, self.model.get_input_embeddings()(ids), rows)[:, -1]

    def advance(self, ids: Tensor, rows: list[Row]) -> Tensor:
        """As `hidden`, -> next-token logits (B, V)."""
        return self.logits(self.hidden(ids, rows))

    def slots(self, keys: Tensor, values: Tensor, start: int = 0) -> Slots:
        """Keys, values (L, B, J, M, D) at position 0 -> slots at positions start .. start+M-1, where the model is."""
        positions = torch.arange(start, start + keys.shape[3], device=self.device)
        dtype = self.model.dtype
        turned = [rotate(self.model, layer.to(self.device), positions).to(dtype) for layer in keys]
        return Slots(turned, [layer.to(self.device, dtype) for layer in values])

    def extended(self, slots: Slots | None, keys: Tensor, values: Tensor) -> Slots:
        """The slots, and behind them those of keys and values (L, B, J, k, D) at position 0."""
        new = self.slots(keys, values, len(slots) if slots else 0)
        if slots is None:
            return new
        return Slots(
            [torch.cat(pair, dim=2) for pair in zip(slots.keys, new.keys, strict=True)],
            [torch.cat(pair, dim=2) for pair in zip(slots.values, new.values, strict=True)],
        )

    def check(self, memory: DocumentMemory) -> None:
        """Refuses a memory that this model did not make.

        Raises:
            WrongModel: another language model, or other memory weights.
        """
        if memory.model != self.fingerprint:
            raise WrongModel("This memory was made by another language model.", "Memorize the document again.")
        if memory.weights != self.weights_fingerprint:
            raise WrongModel("This memory was made with other memory weights.", "Memorize the document again.")


@dataclass
class Composed:
    """Several documents' slots side by side, in positions 0 .. M-1, and where each slot comes from."""

    slots: Slots
    documents: tuple[str, ...]
    owners: Tensor  # (M,) index into `documents`
    spans: Tensor  # (M, 2) characters in the owner's text
    left_out: tuple[str, ...] = ()  # documents that did not fit
    # (L, M) attention on the slots when nothing in particular is asked, see clues.neutral: of the answer's tokens, and
    # of the question's
    usual: Tensor | None = None
    usual_look: Tensor | None = None

    def first_slots(self) -> Tensor:
        """(M,) True for the first slot of each document, its attention sink."""
        return torch.cat([torch.tensor([True]), self.owners[1:] != self.owners[:-1]])


class Memory:
    """The memories of a set of documents, each made independently; adding and removing are exact and instant."""

    def __init__(self, model: MemoryModel) -> None:
        self.model = model
        self._documents: dict[str, DocumentMemory] = {}
        self._composed: Composed | None = None
        self._parts: list[DocumentMemory] = []  # what `_composed` is made of

    def __len__(self) -> int:
        return len(self._documents)

    def __contains__(self, document: str) -> bool:
        return document in self._documents

    def __getitem__(self, document: str) -> DocumentMemory:
        return self._documents[document]

    def add(self, memory: DocumentMemory) -> None:
        """Puts a document's memory in (in place of an earlier one of the same document).

        Raises:
            WrongModel: it was made by another model or other memory weights.
        """
        self.model.check(memory)
        self._documents[memory.document] = memory

    def remove(self, document: str) -> None:
        """Takes a document out; the rest is as if it had never been there."""
        del self._documents[document]
        self._composed, self._parts = None, []

    def compose(self, relevance: Iterable[str] = ()) -> Composed:
        """All documents side by side, in the order they were added; of those that do not fit together, the most
        relevant. `relevance`: documents, best first (the rest follow in the order they were added).

        The last composition is kept: several questions to the same documents share it.

        Raises:
            UnknownDocument: there is none, not any more maybe.
        """
        known = dict(self._documents)  # as it is now: another thread may add and remove meanwhile
        order = [*dict.fromkeys(d for d in relevance if d in known)]
        order += [d for d in known if d not in order]
        room, chosen = self.model.max_positions - self.model.reserve, set[str]()
        for document in order:
            if known[document].slots <= room:
                room -= known[document].slots
                chosen.add(document)
        documents = tuple(d for d in known if d in chosen)
        if not documents:
            raise UnknownDocument("There is no memory to look at.", "Add a document first.")
        parts, composed = [known[d] for d in documents], self._composed
        if composed is None or list(map(id, self._parts)) != list(map(id, parts)):
            keys = torch.cat([m.keys for m in parts], dim=2)
            slots = self.model.slots(keys[:, None], torch.cat([m.values for m in parts], dim=2)[:, None])
            owners = torch.cat([torch.full((m.slots,), i) for i, m in enumerate(parts)])
            composed = Composed(slots, documents, owners, torch.cat([m.spans for m in parts]))
            self._composed, self._parts = composed, parts
        composed.left_out = tuple(d for d in known if d not in chosen)
        return composed


@contextmanager
def inference(model: MemoryModel) -> Iterator[None]:
    """The model's turn, without gradients: for whoever runs it outside `memorize`."""
    with torch.no_grad(), model.turn:
        yield


def read_all(steps: Iterator[Reading | DocumentMemory]) -> DocumentMemory:
    """Runs `memorize` to its end. Returns the memory."""
    *_, memory = steps
    assert isinstance(memory, DocumentMemory)
    return memory

