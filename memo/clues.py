"""Clues: what a question brings back from memory, before anything is looked up.

In: a question and a composed memory. Out: clues of four kinds, each with a score and the stretches of the documents
its tokens looked at. All kinds are generated in one batch over one memory, which is left as it was.

Source: MemoRAG (arXiv 2409.05591v3), section 2.2, y = Theta_mem(q | theta_mem). Ours: language-neutral parsing, scores,
and attention on the memory slots: that of a clue's tokens says where the clue comes from (`sources`), that of the
question's tokens which passages it is about (`pointers`, a search without an index).
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any

from memo.events import Clue, Source
from memo.generate import Prompt, Stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from memo.memory import Composed
    from memo.passages import Passage

SYSTEM = "You answer questions about the document above."
READER = "You have read a text and remember it."
# kind -> system prompt, what is asked, how the answer begins: the wordings whose clues found most in short trials
KINDS: dict[str, tuple[str, str, str]] = {
    "span": (READER, "Quote from the text what answers this: {}", '"'),
    "question": (
        SYSTEM,
        "Which simpler questions about the document above help to answer this one? One a line: {}",
        "1. ",
    ),
    "draft": (SYSTEM, "Answer from the document above, in one sentence.\n\nQuestion: {}", ""),
    "key": (READER, "List the key points, names and places that matter for: {}", "- "),
}
NEUTRAL = "N/A"  # a question about nothing
LINES = 3  # clues of one kind at most
NEAR = 6  # slots whose attention is looked at together: about a sentence or two
SOURCES = 5  # places a clue points to at most

_MARKER = re.compile(r"\s*(?:[-*•·]+|\(?\d{1,2}[.):]|\(?[a-zA-Z][.)])\s+")
_QUOTES = "\"'“”‘’«»「」『』"


def prompt(kind: str, question: str, max_tokens: int, **more: Any) -> Prompt:
    """The prompt that recalls clues of that kind. more: its other fields."""
    system, ask, prefix = KINDS[kind]
    return Prompt((("system", system), ("user", ask.format(question))), max_tokens, prefix, **more)


def prompts(question: str, memory: Composed, max_tokens: int) -> dict[str, Prompt]:
    """Kind -> the prompt that recalls clues of that kind."""
    return {
        kind: prompt(
            kind, question, max_tokens, slots=memory.slots, watch=True, stop_at=2 * LINES,
            look=question if kind == "draft" else "",
        )
        for kind in KINDS
    }  # fmt: skip


def look(question: str, memory: Composed, max_tokens: int = 1) -> Prompt:
    """The prompt of the draft, to see where the question looks; what is said to it does not matter."""
    return prompt("draft", question, max_tokens, slots=memory.slots, watch=True, look=question)


def neutral(memory: Composed) -> Prompt:
    """A prompt about nothing in particular: what its tokens look at, those of every question look at."""
    return look(NEUTRAL, memory, 32)


def learn_usual(memory: Composed, stream: Stream) -> None:
    """Keeps where the tokens of `neutral` looked; nowhere, where nothing was answered."""
    import torch

    usual = background([stream])
    memory.usual = torch.zeros(len(memory.slots.keys), len(memory.owners)) if usual is None else usual
    memory.usual_look = stream.looked


def key_of(text: str) -> str:
    """Letters and digits alone, case-folded: what makes two clues the same."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if c.isalnum())


def lines(text: str) -> list[tuple[int, int]]:
    """Spans of the lines of a generated list, without numbering, bullets and quotation marks."""
    spans = []
    for match in re.finditer(r"[^\n]+", text):
        start, end = match.span()
        while marker := _MARKER.match(text, start, end):
            start = marker.end()
        while start < end and (text[start].isspace() or text[start] in _QUOTES):
            start += 1
        while start < end and (text[end - 1].isspace() or text[end - 1] in _QUOTES):
            end -= 1
        if start < end:
            spans.append((start, end))
    return spans


def parse(
    kind: str, stream: Stream, question: str, memory: Composed | None, usual: torch.Tensor | None
) -> list[Clue]:
    """The clues in one stream (finished or not): at most `LINES`, without echoes of the question or repeats.

    Without memory and `usual` they have no sources.
    """
    text = stream.text
    if stream.tokens >= stream.prompt.max_tokens:  # cut in the middle: its last whole sentence or line is its end
        whole = max(text.rfind(mark) for mark in ".!?。！？\n") + 1
        text = text[:whole] if whole > len(stream.prompt.prefix) + 8 else text
    spans = [(0, len(text.rstrip()))] if kind == "draft" else lines(text)
    seen, clues = {key_of(question)}, []
    for start, end in spans:
        piece = text[start:end].strip()
        key = key_of(piece)
        known = any(key in other or (other in key and len(other) > 0.8 * len(key)) for other in seen)
        if known or len(key.encode()) < 4:  # bytes: two Chinese or Korean characters are a word
            continue
        seen.add(key)
        ends = [0, *(mark for mark, _ in stream.marks)]
        tokens = [i for i in range(len(stream.marks)) if ends[i + 1] > start and ends[i] < end]
        score = sum(stream.marks[i][1] for i in tokens) / max(1, len(tokens))
        clues.append(Clue(piece, kind, score, sources(stream, tokens, memory, usual)))
    return clues[:LINES]


def background(streams: list[Stream]) -> torch.Tensor | None:
    """(layers, M) attention on the slots, the mean of all generated tokens of some streams."""
    import torch

    every = [mass for stream in streams for mass in stream.mass]
    return torch.stack(every).float().mean(dim=0) if every else None


def sources(
    stream: Stream, tokens: list[int], memory: Composed | None, usual: torch.Tensor | None
) -> tuple[Source, ...]:
    """The stretches of the documents that these generated tokens looked at more than usual, strongest first.

    strength(slot) = mean over layers of max(0, a - u) / sqrt(u), with a the tokens' mean attention on the slot and u
    the usual one: a slot that is always looked at (the latest, a full stop) says little. Token i was chosen while token
    i - 1 looked, hence the shift.
    """
    import torch

    looks = [stream.mass[i - 1] for i in tokens if 0 < i <= len(stream.mass)]
    if not looks or usual is None or memory is None:
        return ()
    more = (torch.stack(looks).float().mean(dim=0) - usual).clamp(min=0)  # (layers, M)
    strength = (more / (usual + 1e-6).sqrt()).mean(dim=0)  # (M,)
    strength[memory.first_slots()] = 0  # attention sinks: they draw attention without meaning anything
    kernel = min(NEAR, len(strength))
    near = strength.unfold(0, kernel, 1).sum(dim=1)  # (M - kernel + 1,) strength of `kernel` slots together
    found: list[Source] = []
    total = float(strength.sum()) or 1.0
    for _ in range(SOURCES):
        first = int(near.argmax())
        if near[first] <= 0:
            break
        owner = memory.owners[first + int(strength[first : first + kernel].argmax())]  # where two documents meet
        inside = [slot for slot in range(first, first + kernel) if memory.owners[slot] == owner]
        found.append(
            Source(
                memory.documents[int(owner)], int(memory.spans[inside[0], 0]), int(memory.spans[inside[-1], 1]),
                float(strength[inside].sum()) / total,
            )
        )  # fmt: skip
        near[max(0, first - kernel + 1) : first + kernel] = 0
    return tuple(found)


def pointers(looked: torch.Tensor | None, memory: Composed, passages: Sequence[Passage]) -> list[float]:
    """How much more than usual a question looked at each passage; 1 for the one it looked at most.

    strength(passage) = mean over layers of max(0, a - u) / sqrt(u), with a the attention of the question's tokens
    (`looked`, (layers, M)) on the passage's slots together, and u that of a neutral question's. A slot that a passage
    holds in part counts in part.
    """
    import torch

    if looked is None or memory.usual_look is None or not passages:
        return [0.0] * len(passages)
    weights = torch.stack([looked.float(), memory.usual_look.float()])  # (2, layers, M)
    weights[:, :, memory.first_slots()] = 0  # attention sinks: they draw attention without meaning anything
    both = weights.new_zeros(*weights.shape[:2], len(passages))  # (2, layers, P)
    for number, document in enumerate(memory.documents):
        own = memory.owners == number
        mine = [i for i, passage in enumerate(passages) if passage.document == document]
        # slots tile a text: what lies before a character is a sum of whole slots and a part of one
        ends = torch.cat([memory.spans[own][:1, 0], memory.spans[own][:, 1]]).double()  # (m + 1,)
        before = torch.nn.functional.pad(weights[:, :, own].cumsum(dim=2), (1, 0))  # (2, layers, m + 1)

        def until(places: list[int], ends: Tensor = ends, before: Tensor = before) -> Tensor:
            at = torch.tensor(places).double().clamp(ends[0], ends[-1])
            slot = torch.searchsorted(ends, at, right=True).clamp(1, len(ends) - 1) - 1
            share = ((at - ends[slot]) / (ends[slot + 1] - ends[slot]).clamp(min=1)).float()
            return before[:, :, slot] + share * (before[:, :, slot + 1] - before[:, :, slot])

        both[:, :, mine] = until([passages[i].end for i in mine]) - until([passages[i].start for i in mine])
    a, u = both.clamp(min=0)
    strength = ((a - u).clamp(min=0) / (u + 1e-6).sqrt()).mean(dim=0)
    return (strength / strength.max().clamp(min=1e-9)).tolist()


def collect(streams: dict[str, Stream], question: str, memory: Composed | None) -> tuple[Clue, ...]:
    """All clues of a batch, without repeats across kinds; without memory (streams that go on) without sources."""
    clues: dict[str, Clue] = {}
    for kind, stream in streams.items():
        for clue in parse(kind, stream, question, memory, memory.usual if memory else None):
            clues.setdefault(key_of(clue.text), clue)
    return tuple(clues.values())
