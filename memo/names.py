"""Names: what leads from one document to the next.

In: a question, and the passages that its own search found. Out: clues of kind "name", taken from the best of those
passages, and the ranking of passages that they bring.

"When did the director of Low Tide die?" is near the passage on the film, which names the director, and far from the
passage on her. So names that the question has not, in passages that it is near to, are looked up in their turn:

    strength(n) = START + NEAR (s(q, p_n) - max_p s(q, p)) - KNOWN share of n's words that the question has
                        - ALONE if it is a single word
    score(p)    = max(NOTHING, max_n strength(n) + s(n, p))

with s the similarity of query and passage and p_n the passage a name was read in. A name leads to other documents: the
passages of its own share it, so they all have the best s(n, p) among them, and keep the order that the question gives
them. Of each name its nearest passages are known, the others count as NOTHING. Source: ours; the same thought as in
iterative retrieval (arXiv 2009.12756).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import dropwhile, pairwise
from typing import Any

from memo.events import Clue, Source
from memo.passages import sentences

# Chosen on train splits: 2wiki, hotpotqa, musique; squad and fairytaleqa, several of their documents together
START, NEAR, KNOWN, ALONE, NOTHING = 0.58, 2.05, 0.5, 0.1, 0.85
NAME_WEIGHT = 1.0  # of all names together; the question's own ranking has 1
READ = 12  # passages whose names are read
NAMES = 6  # that are looked up

_WORD = re.compile(r"[^\W_]+(?:['’&.-][^\W_]+)*")
_GAP = re.compile(r"\.?\s")  # "J. Doe", and a line that was broken within a name
_BETWEEN = {"of", "the", "de", "da", "del", "der", "van", "von"}  # inside a name, two at most: "Order of the Garter"
_OWN = re.compile(r"['’]s$")


def runs(text: str) -> Iterator[tuple[tuple[int, int], list[re.Match[str]], bool]]:
    """Words with a capital, side by side: the sentence they stand in, the words, whether they begin it.

    None in scripts without capitals.
    """
    for sentence in sentences(text):
        words, first = list(_WORD.finditer(text, *sentence)), 0
        while first < len(words):
            last = first
            while step := next((n for n in (1, 2, 3) if _joined(text, words[last : last + n + 1], n)), 0):
                last += step
            if _capital(words[first]):
                yield sentence, words[first : last + 1], first == 0
            first = last + 1


def _capital(word: re.Match[str]) -> bool:
    return word[0][0].isupper() and word[0] != "I"


def _joined(text: str, words: Sequence[re.Match[str]], apart: int) -> bool:
    """Whether the first of these words and the last, so far apart, belong to one name."""
    if len(words) <= apart or not (_capital(words[0]) and _capital(words[-1])):
        return False
    gaps = all(_GAP.fullmatch(text, one.end(), other.start()) for one, other in pairwise(words))
    return gaps and all(word[0] in _BETWEEN for word in words[1:-1])


def read(question: str, passages: Sequence[tuple[dict[str, Any], str]]) -> tuple[Clue, ...]:
    """The strongest names in some passages, as clues whose score is their strength and whose source is their sentence.

    passages: (hit, text), best first. A capital says nothing at the beginning of a sentence: there a word that stands
    elsewhere in these passages without it ("The") belongs to no name, and a single word ("Here") is none.
    """
    passages = passages[:READ]
    plain = {word[0] for _, text in passages for word in _WORD.finditer(text) if word[0][0].islower()}
    asked = set(_words(question))
    best: dict[str, Clue] = {}
    for hit, text in passages:
        near = NEAR * (hit["similarity"] - passages[0][0]["similarity"])
        for (begin, stop), words, first in runs(text):
            if first and (len(words) == 1 or words[0][0].lower() in plain):
                words = list(dropwhile(lambda word: not _capital(word), words[1:]))
            if not words:
                continue
            name = _OWN.sub("", text[words[0].start() : words[-1].end()])
            parts = _words(name)
            key = " ".join(parts)
            if len(key) < 3 or key in best:
                continue
            known = sum(part in asked for part in parts) / len(parts)
            strength = START + near - KNOWN * known - ALONE * (len(parts) == 1)
            sentence = Source(hit["document"], hit["start"] + begin, hit["start"] + stop)
            best[key] = Clue(" ".join(name.split()), "name", strength, (sentence,))
    return tuple(sorted(best.values(), key=lambda clue: -clue.score)[:NAMES])


def _words(text: str) -> list[str]:
    return [_OWN.sub("", word).casefold() for word in _WORD.findall(text)]


def ranking(
    names: Sequence[Clue], found: Sequence[Sequence[dict[str, Any]]], others: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """One ranking from what looking up each name found; each passage carries the name that leads to it, as `clue`.

    found: of each name passages of other documents, and the nearest of its own. others: what was found otherwise.
    """
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for name, hits in zip(names, found, strict=True):
        home = home_of(name)
        nearest = max((hit["similarity"] for hit in hits if hit["document"] == home), default=0.0)
        own = [{**hit, "similarity": nearest} for hit in (*others, *hits) if hit["document"] == home]
        for hit in (*own, *(hit for hit in hits if hit["document"] != home)):
            one = {**hit, "similarity": name.score + hit["similarity"], "clue": name.text}
            key = (hit["document"], hit["start"])
            best[key] = max(best.get(key, one), one, key=lambda hit: hit["similarity"])
    order = sorted(best.values(), key=lambda hit: -hit["similarity"])
    return [{**hit, "similarity": max(NOTHING, hit["similarity"])} for hit in order]


def home_of(name: Clue) -> str:
    """The document that a name was read in."""
    return name.sources[0].document if name.sources else ""
