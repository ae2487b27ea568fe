"""Passages as HTML, with the words of the clues highlighted and the cited sentences marked.

In: passages, clues, citations. Out: HTML in which every character of a document has gone through `esc`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from memo.cite import words
from memo.events import Citation, Found
from memo.ui.board import Board
from memo.ui.texts import say
from memo.ui.visits import Visit

_RUN = re.compile(r"[^\W_]+")
_BLANK = re.compile(r"\n\s*\n")
SHORT = 4  # Latin words below this are rarely what a clue is about
COMMON = frozenset(
    "about after also answer been before being could does during each from have here into just many more most much "  # noqa: SIM905
    "only other over same should some such than that their them then there these they this those through under very "
    "were what when where which while whose will with would your document according following".split()
)
LABELS = ("question", "memory", "made-up answer")  # what may have found a passage, besides a clue's own text


def esc(text: object) -> str:
    """Text as text, whatever it contains."""
    return html.escape(str(text), quote=True)


def terms(texts: Iterable[str]) -> frozenset[str]:
    """The words to highlight."""
    return frozenset(
        word for text in texts for word in words(text)
        if word not in COMMON and (len(word) >= SHORT or not word.isascii() or word.isdigit())
    )  # fmt: skip


def hits(text: str, wanted: frozenset[str]) -> list[tuple[int, int]]:
    """Where words to highlight stand. A word of pairs (see `memo.cite.words`) counts if half its pairs are wanted."""
    found = []
    for match in _RUN.finditer(text):
        parts = set(words(match[0]))
        if parts and len(parts & wanted) * 2 >= len(parts):
            found.append(match.span())
    return found


def marked(
    text: str, found: Sequence[tuple[int, int]], cited: Sequence[tuple[int, int, int]] = (), strategy: str = ""
) -> str:
    """The text with the spans of `found` (start, end) highlighted and those of `cited` (start, end, number) marked."""
    cuts = sorted({0, len(text), *(p for s in found for p in s), *(p for s in cited for p in s[:2])})
    parts, seen = [], set[int]()
    for start, end in pairwise(cuts):
        piece = esc(_BLANK.sub("\n", text[start:end]))
        if any(a <= start and end <= b for a, b in found):
            piece = f'<b class="hit">{piece}</b>'
        numbers = [number for a, b, number in cited if a <= start and end <= b]
        if numbers:
            first = "".join(f' id="mark-{strategy}-{n}" tabindex="-1"' for n in numbers[:1] if n not in seen)
            seen.update(numbers)
            piece = f'<mark class="cited" data-cites="{" ".join(map(str, numbers))}"{first}>{piece}</mark>'
        parts.append(piece)
    return "".join(parts)


def place_of(visit: Visit, document: str, offset: int) -> str:
    """Name and page of a place in a document, as text."""
    name, page, _ = visit.place(document, offset)
    name = name or say(visit.language, "document.deleted")
    return say(visit.language, "place.page", name=name, page=page) if page else name


def reason(language: str, label: str, clues: Sequence[str]) -> str:
    """What found a passage, as HTML: a clue on the page by its number, else its words."""
    if label in clues:
        number = say(language, "by.number", number=clues.index(label) + 1)
        return f'<span class="by by-clue" title="{esc(label)}">{esc(number)}</span>'
    if label in LABELS:
        return f'<span class="by">{esc(say(language, "by." + label.replace(" ", "_").replace("-", "_")))}</span>'
    short = label if len(label) <= 60 else label[:58].rstrip() + "…"
    return f'<span class="by by-clue" title="{esc(label)}">{esc(say(language, "by.clue", clue=short))}</span>'


def passage_card(
    visit: Visit, strategy: str, number: int, found: Found, wanted: frozenset[str], citations: Sequence[Citation]
) -> str:
    """One passage: where it is, why it was found, its text."""
    language = visit.language
    clues = [clue.text for clue in visit.board.clues] if visit.board and strategy == "memorag" else []
    name, page, _ = visit.place(found.document, found.start)
    cited = [
        (c.source.start - found.start, c.source.end - found.start, i)
        for i, c in enumerate(citations) if c.passage == number
    ]  # fmt: skip
    title = esc(name or say(language, "document.deleted"))
    where = f'<span class="page">{esc(say(language, "page", page=page))}</span>' if page else ""
    score = f'<span class="score">{esc(say(language, "score", score=f"{found.score:.2f}"))}</span>'
    return (
        f'<article class="passage{" is-cited" if cited else ""}" id="passage-{strategy}-{number}">'
        f'<header><span class="number">{number + 1}</span><span class="doc">{title}</span>{where}{score}</header>'
        f'<p class="found-by">{esc(say(language, "found_by"))} '
        f'{"".join(reason(language, label, clues) for label in found.found_by)}</p>'
        f'<div class="text">{marked(found.text.strip(), *_shifted(found, wanted, cited), strategy)}</div>'
        f'<button type="button" class="more" aria-expanded="false" data-more="{esc(say(language, "more"))}" '
        f'data-less="{esc(say(language, "less"))}">{esc(say(language, "more"))}</button></article>'
    )


def _shifted(
    found: Found, wanted: frozenset[str], cited: Sequence[tuple[int, int, int]]
) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """Spans within the passage without its surrounding white space."""
    text = found.text.strip()
    lead = len(found.text) - len(found.text.lstrip())
    inside = [(max(0, a - lead), min(len(text), b - lead), n) for a, b, n in cited]
    return hits(text, wanted), [(a, b, n) for a, b, n in inside if a < b]


def passages(visit: Visit) -> str:
    """The passages of every strategy, one set at a time to see."""
    board, language = visit.board, visit.language
    if board is None or not board.passages:
        key = "passages.none" if board and not board.running else "passages.empty"
        return f'<p class="empty">{esc(say(language, key))}</p>'
    sets = [name for name in board.columns if name in board.passages]
    tabs = "".join(
        f'<button type="button" class="chip" data-set="{name}" aria-pressed="{str(i == 0).lower()}">'
        f'{esc(say(language, f"strategy.{name}"))} <span class="count">{len(board.passages[name])}</span></button>'
        for i, name in enumerate(sets)
    )
    back = f'<button type="button" class="back" hidden>{esc(say(language, "back"))}</button>'
    label = esc(say(language, "passages.of"))
    head = f'<div class="sets" role="group" aria-label="{label}">{tabs}{back}</div>'
    return head + "".join(_set(visit, board, name, i == 0) for i, name in enumerate(sets))


def _set(visit: Visit, board: Board, strategy: str, shown: bool) -> str:
    answer = board.columns[strategy].answer
    citations = answer.citations if answer else ()
    clues = [clue.text for clue in board.clues] if strategy == "memorag" else []
    cards = []
    for number, found in enumerate(board.passages[strategy]):
        own = [label for label in found.found_by if label not in LABELS]
        wanted = terms([board.question, board.rewritten, *clues, *own])
        cards.append(passage_card(visit, strategy, number, found, wanted, citations))
    body = "".join(cards) or f'<p class="empty">{esc(say(visit.language, "passages.none"))}</p>'
    label = esc(say(visit.language, f"strategy.{strategy}"))
    hidden = "" if shown else " hidden"
    return f'<div class="set" data-of="{strategy}" role="region" aria-label="{label}" tabindex="0"{hidden}>{body}</div>'
