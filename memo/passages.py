"""A Document becomes passages: pieces that a search can find and a prompt can hold.

In: a `Document`, a fast tokenizer and the most tokens a passage may have. Out: `Passage`s in order, each an exact slice
of the document's text and within one page; between them lies only white space. `sentences` finds the sentences of a
text in any language that ends them with a mark; passages and citations are made of them.

Passages are packed from whole sentences. A ready-made splitter (semantic-text-splitter) left headings alone or at the
end of the passage before, and took a time that grows with the square of a text without spaces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from memo.documents import Document

Count = Callable[[list[str]], list[int]]

# A tokenizer that knows only words makes one token of 100,000 letters without a space; a passage must not be so long.
CHARACTERS_PER_TOKEN = 8

STOP = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]*_]*+(?=\s)")  # a mark, what it closes with, and then white space
CJK_STOP = re.compile(r"[。！？｡]++(?:[」』）)”’\"']++(?=[\s「『（“‘])|(?![」』）)”’\"']))")  # needs no white space
KOREAN_STOP = re.compile(r"(?<=[다요죠까])\.(?=[가-힣])")  # "했다.그리고"
BLOCK_END = re.compile(r"\n[^\S\n]*\n")
# The end of a heading, a table row or a list item, unless the item goes on in the next line.
LINE_END = re.compile(
    r"^[^\S\n]*(?:(?:#{1,6}[^\S\n]|\|).*\n|(?:[-*+•·◦▪]|\(?\d{1,3}[.)]|[가나라마바사아자차카타파하]\.)[^\S\n].*\n(?![^\S\n]|[a-z]))",
    re.MULTILINE,
)
LINE_START = re.compile(
    r"\n(?=[^\S\n]*(?:#{1,6}[^\S\n]|\||(?:[-*+•·◦▪]|\d{1,3}[.)])[^\S\n]))"
)  # and what comes before one
WORD_BEFORE = re.compile(r"[^\s(\[\"'“‘]+$")
# Not 다: many Korean sentences end so, and a PDF may break the line within a word.
LIST_NUMBER = re.compile(r"(?:\A|\n)[^\S\n]*\(?(?:\d{1,3}|[a-zA-Z가나라마바사아자차카타파하]|[ivxIVX]{1,5})$")
BLANK_BELOW = re.compile(r"[^\S\n]*\n[^\S\n]*\n")
HEADING = re.compile(r"#{1,6}[^\S\n].*|(?![-*+•·◦▪|>])[^\n]{1,80}(?<![.!?:;,。！？…])")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TITLES = _words("mr mrs ms dr prof st gen col lt capt sgt rev hon sen rep gov vs cf e.g i.e z.b d.h u.a bzw ca")
BEFORE_NUMBERS = _words(
    "no nos nr fig figs eq eqs sec ch chap vol pp p art par jan feb mar apr jun jul aug sep sept oct nov dec"
)
WITHIN_SENTENCES = _words("etc inc ltd co corp al jr sr approx a.m p.m")  # and at their end too


@dataclass(frozen=True)
class Passage:
    """A piece of a document: `text` is exactly `document.text[start:end]`."""

    document: str
    start: int
    end: int
    page: int | None
    text: str

    @property
    def id(self) -> str:
        """Unique among all passages of one splitting."""
        return f"{self.document}:{self.start}"


@dataclass(frozen=True)
class Unit:
    """What packing moves around: a sentence, or a piece of one that is too long."""

    start: int
    end: int
    tokens: int
    heading: bool
    opens: bool  # a paragraph


def sentences(text: str) -> list[tuple[int, int]]:
    """The spans of the sentences, headings, list items and table rows: in order, without the white space around them.

    Everything but white space is in one of them.
    """
    ends = {match.end() for match in STOP.finditer(text) if is_stop(text, match)}
    for pattern in (CJK_STOP, KOREAN_STOP, BLOCK_END, LINE_END, LINE_START):
        ends.update(match.end() for match in pattern.finditer(text))
    spans, start = [], 0
    for end in sorted(ends | {len(text)}):
        piece = text[start:end]
        if stripped := piece.strip():
            left = start + len(piece) - len(piece.lstrip())
            spans.append((left, left + len(stripped)))
        start = end
    return spans


def is_stop(text: str, match: re.Match[str]) -> bool:
    """Whether the mark ends a sentence; not so in "Mr. Kim", "No. 7", "J. Doe", "1. First" and "“Why?” he said"."""
    mark, at = match[0], match.start()
    following = next((letter for letter in text[match.end() : match.end() + 8] if not letter.isspace()), "")
    if mark != ".":
        return not (following.islower() and (len(mark) > 1 or mark == "…"))
    before = text[max(0, at - 24) : at]
    if LIST_NUMBER.search(before):
        return False
    found = WORD_BEFORE.search(before)
    word = found[0] if found else ""
    lower = word.lower()
    if lower in TITLES or (lower in BEFORE_NUMBERS and following.isdigit()):
        return False
    if lower in WITHIN_SENTENCES:
        return not following.islower()
    return not re.fullmatch(r"(?:[^\W\d_]\.)*[A-Z]", word)


def split(document: Document, tokenizer: Tokenizer, max_tokens: int) -> list[Passage]:
    """Cut the document into passages of at most `max_tokens` tokens (special tokens not counted), none across pages.

    Passages end where sentences end, before a heading or a new paragraph where one comes late enough; a heading stays
    with the text below it. A sentence that is too long is cut at white space, and at any character if it has none.
    """
    count = token_counter(tokenizer)
    regions = [(page.start, page.end, page.number) for page in document.pages] or [(0, len(document.text), None)]
    return [
        Passage(document.id, first + start, first + end, number, document.text[first + start : first + end])
        for first, last, number in regions
        for start, end in pack(document.text[first:last], count, max_tokens)
    ]


def token_counter(tokenizer: Tokenizer) -> Count:
    """A function from texts to their sizes in tokens; `tokenizer` is left as it is."""
    if tokenizer.truncation or tokenizer.padding:  # as embedders' files have it; every text would seem equally long
        tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()

    def count(texts: list[str]) -> list[int]:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            max(len(encoding.ids), -(-len(text) // CHARACTERS_PER_TOKEN))
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    return count


def pack(text: str, count: Count, cap: int) -> Iterator[tuple[int, int]]:
    """Spans of at most `cap` tokens that hold all of `text` but white space between them."""
    units, i = make_units(text, count, cap), 0
    while i < len(units):
        j, tokens = i + 1, units[i].tokens
        while j < len(units) and tokens + units[j].tokens <= cap:
            tokens += units[j].tokens
            j += 1
        # Some tokenizers make a few more tokens of the whole than of its parts.
        while j > i + 1 and span_tokens(text, units[i].start, units[j - 1].end, count) > cap:
            j -= 1
        if j < len(units) and all(unit.heading for unit in units[i:j]) and not units[j].heading:
            j += take_part(text, units, i, j, count, cap)
        else:
            j = best_end(units, i, j, cap)
        yield units[i].start, units[j - 1].end
        i = j


def make_units(text: str, count: Count, cap: int) -> list[Unit]:
    """The sentences of `text`, those over `cap` tokens in pieces."""
    spans = sentences(text)
    befores = [0, *(end for _, end in spans)]
    # Sizes include the white space before: some tokenizers count it, and together they should be the size of the whole.
    sizes = count([text[before:end] for before, (_, end) in zip(befores, spans, strict=False)])
    units = []
    for before, (start, end), tokens in zip(befores, spans, sizes, strict=False):
        opens = BLOCK_END.search(text, before, start) is not None
        if tokens * 2 <= cap or span_tokens(text, start, end, count) <= cap:
            units.append(Unit(start, end, tokens, is_heading(text, start, end), opens))
        else:
            units += pieces(text, start, end, count, cap)
    return units


def is_heading(text: str, start: int, end: int) -> bool:
    """Whether the sentence heads what follows: marked as Markdown does, or a short line by itself without a stop."""
    sentence = text[start:end]
    return HEADING.fullmatch(sentence) is not None and (
        sentence.startswith("#") or BLANK_BELOW.match(text, end) is not None
    )


def take_part(text: str, units: list[Unit], i: int, j: int, count: Count, cap: int) -> int:
    """Let the headings `units[i:j]`, which the sentence below does not fit with, have its first part.

    Cuts `units[j]` in place. Returns 1, or 0 where the headings leave too little room.
    """
    below = units[j]
    room = cap - span_tokens(text, units[i].start, below.start, count)
    if room * 4 < cap:
        return 0
    first, *rest = pieces(text, below.start, below.end, count, room - 1)
    units[j : j + 1] = [first, *pieces(text, first.end, below.end, count, cap)] if rest else [first]
    return int(span_tokens(text, units[i].start, first.end, count) <= cap)


def best_end(units: list[Unit], i: int, j: int, cap: int) -> int:
    """Where a passage from `units[i]`, which could hold all before `units[j]`, had better end."""
    if j == len(units):
        return j
    end = j
    while end > i + 1 and units[end - 1].heading:  # headings go with what is below
        end -= 1
    if j - end > 3:  # these are no headings, but short lines
        end = j
    filled = list(accumulate(unit.tokens for unit in units[i:end]))  # filled[n]: tokens of units[i : i + n + 1]
    for k in range(end - 1, i, -1):
        if units[k].heading and not units[k - 1].heading and filled[k - i - 1] * 2 >= cap:
            return k
    for k in range(end - 1, i, -1):
        if units[k].opens and not units[k - 1].heading and filled[k - i - 1] * 4 >= cap * 3:
            return k
    return end


def pieces(text: str, start: int, end: int, count: Count, cap: int) -> list[Unit]:
    """A sentence in pieces of at most `cap` tokens; no white space begins or ends one."""
    units = []
    while start < end:
        if text[start].isspace():
            start += 1
            continue
        stop = cut(text, start, end, count, cap)
        units.append(Unit(start, stop, span_tokens(text, start, stop, count), heading=False, opens=False))
        start = stop
    return units


def cut(text: str, start: int, end: int, count: Count, cap: int) -> int:
    """Where to end a first piece of at most `cap` tokens: at a line end, a comma or a space of its second half."""
    stop = trimmed(text, start, min(end, start + cap * CHARACTERS_PER_TOKEN))
    while (tokens := span_tokens(text, start, stop, count)) > cap and stop - start > 1:
        stop = trimmed(text, start, start + max(1, min(stop - start - 1, (stop - start) * cap // tokens)))
    if stop < end:
        half = start + (stop - start) // 2
        for mark in ("\n", "; ", ", ", " "):
            at = trimmed(text, start, text.rfind(mark, half, stop) + len(mark))
            if at > half and span_tokens(text, start, at, count) <= cap:
                return at
    return stop


def trimmed(text: str, start: int, end: int) -> int:
    """`end`, moved before the white space there."""
    return start + len(text[start:end].rstrip())


def span_tokens(text: str, start: int, end: int, count: Count) -> int:
    """The size of `text[start:end]`."""
    return count([text[start:end]])[0]
