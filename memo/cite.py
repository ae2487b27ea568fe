"""Citations: sentence of an answer -> the span of a passage that supports it, without asking a language model.

In: an answer and its passages. Out: `Citation`s with exact character spans on both sides. A sentence of the answer and
a sentence of a passage are compared by the words they share, rare words counting more; a number that is not there is
not supported. So a citation says where the words stand, not that the sentence is true:

    support(a, p) = sum of idf(w) over words in both / sum of idf(w) over words of a

Words are runs of letters or of digits, case-folded; in scripts without spaces, and in Korean, pairs of characters.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from memo.events import Citation, Found, Source
from memo.passages import sentences

ENOUGH = 0.45  # support below this is no citation
_DENSE = r"[\u1100-\u11ff\u2e80-\ud7ff\uf900-\ufaff]"  # scripts without spaces, and Korean
_WORD = re.compile(rf"\d+|(?:(?={_DENSE})[^\W\d_])+|(?:(?!{_DENSE})[^\W\d_])+")


def words(text: str) -> list[str]:
    """What sentences are compared by."""
    out: list[str] = []
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        word = match[0]
        if len(word) > 1 and ord(word[0]) >= 0x1100 and unicodedata.category(word[0]) == "Lo":
            out += [word[i : i + 2] for i in range(len(word) - 1)]
        else:
            out.append(word[:-1] if len(word) > 3 and word.endswith("s") else word)
    return out


def cite(answer: str, passages: Sequence[Found]) -> tuple[Citation, ...]:
    """For each sentence of the answer the best-supporting sentence of the passages, where there is one."""
    candidates = [
        (number, start, end, set(words(passage.text[start:end])))
        for number, passage in enumerate(passages)
        for start, end in sentences(passage.text)
    ]
    frequency = Counter(word for *_, bag in candidates for word in bag)
    total = len(candidates) + 1

    def idf(word: str) -> float:
        # a word that no passage has still counts: the sentence says something that is not supported
        return math.log(1 + total / (1 + frequency[word]))

    citations = []
    for start, end in sentences(answer):
        bag = set(words(answer[start:end]))
        weight = sum(idf(word) for word in bag)
        if not weight or not candidates:
            continue
        numbers = {word for word in bag if word[0].isdigit()}
        support, _, best = max(
            (sum(idf(w) for w in bag & other) / weight if numbers <= other else 0.0, -len(other), i)
            for i, (*_, other) in enumerate(candidates)
        )
        if support >= ENOUGH:
            number, first, last, _ = candidates[best]
            passage = passages[number]
            source = Source(passage.document, passage.start + first, passage.start + last, round(support, 3))
            citations.append(Citation(start, end, number, source))
    return tuple(citations)
