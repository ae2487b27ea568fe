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
them. Source: ours; the same thought as in iterative retrieval (arXiv 2009.12756).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from memo.events import Clue, Source

# Chosen on train splits: 2wiki, hotpotqa, musique; squad and fairytaleqa, several of their documents together
START, NEAR, KNOWN, ALONE, NOTHING = 0.63, 2.05, 0.5, 0.1, 0.85
NAME_WEIGHT = 1.0  # of all names together; the question's own ranking has 1
READ = 12  # passages whose names are read
NAMES = 6  # that are looked up

_WORD = re.compile(r"\w[\w'’&.-]*")
_FIRST = re.compile(r"(?:^|[.!?:\n])[\s\"'“‘(]*$")  # what stands before the first word of a sentence
_BETWEEN = ("of", "the", "de")  # stay inside a name, two at most: "Order of the Garter"


def spans(text: str) -> list[tuple[int, int]]:
    """Characters of each name: words that begin with a capital, side by side. None in scripts without capitals."""
    words, found, first = list(_WORD.finditer(text)), [], 0

    def joined(one: int, other: int) -> bool:
        """Whether another capital follows, behind nothing but a space; a full stop ends a name, that of "J." not."""
        between = [word[0] for word in words[one + 1 : other]]
        if other >= len(words) or not words[other][0][0].isupper() or not set(between) <= set(_BETWEEN):
            return False
        stops = words[one][0].endswith(".") and len(words[one][0]) > 2
        return not stops and text[words[one].end() : words[other].start()] == " ".join(["", *between, ""])

    while first < len(words):
        last = first
        if words[first][0][0].isupper():
            while step := next((step for step in (1, 2, 3) if joined(last, last + step)), 0):
                last += step
            found.append((words[first].start(), words[last].start() + len(words[last][0].rstrip(".-'’"))))
        first = last + 1
    return found


def read(question: str, passages: Sequence[tuple[dict[str, Any], str]]) -> tuple[Clue, ...]:
    """The strongest names in some passages, as clues whose score is their strength. passages: (hit, text), best first.

    A word that stands elsewhere in these passages without its capital ("The") begins no name, and one that only begins
    a sentence ("Here") is none.
    """
    passages = passages[:READ]
    plain = {word for _, text in passages for word in _WORD.findall(text) if word[0].islower()}
    asked = {word.casefold() for word in _words(question)}
    best: dict[str, Clue] = {}
    for hit, text in passages:
        near = NEAR * (hit["similarity"] - passages[0][0]["similarity"])
        for start, end in spans(text):
            while (word := _WORD.match(text, start, end)) and word[0].lower() in plain:
                start = word.end() + (word.end() < end)
            words = _words(text[start:end])
            key = " ".join(words).casefold()
            if len(key) < 3 or key in best or (len(words) == 1 and _FIRST.search(text, 0, start)):
                continue
            known = sum(word.casefold() in asked for word in words) / len(words)
            place = Source(hit["document"], hit["start"] + start, hit["start"] + end)
            strength = START + near - KNOWN * known - ALONE * (len(words) == 1)
            best[key] = Clue(text[start:end], "name", strength, (place,))
    return tuple(sorted(best.values(), key=lambda clue: -clue.score)[:NAMES])


def ranking(
    names: Sequence[Clue], found: Sequence[Sequence[dict[str, Any]]], others: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """One ranking from what looking up each name found; each passage carries the name that leads to it, as `clue`.

    others: what was found otherwise.
    """
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for name, hits in zip(names, found, strict=True):
        home = name.sources[0].document if name.sources else ""
        nearest = max((hit["similarity"] for hit in hits if hit["document"] == home), default=0.0)
        own = [{**hit, "similarity": nearest} for hit in (*others, *hits) if hit["document"] == home]
        for hit in (*own, *(hit for hit in hits if hit["document"] != home)):
            one = {**hit, "similarity": name.score + hit["similarity"], "clue": name.text}
            key = (hit["document"], hit["start"])
            best[key] = max(best.get(key, one), one, key=lambda hit: hit["similarity"])
    order = sorted(best.values(), key=lambda hit: -hit["similarity"])
    return [{**hit, "similarity": max(NOTHING, hit["similarity"])} for hit in order]


def _words(text: str) -> list[str]:
    return [word.strip(".-'’") for word in _WORD.findall(text)]
