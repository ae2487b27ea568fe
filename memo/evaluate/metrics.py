"""Metrics of answers and of retrieval, and the intervals around their means.

In: predictions and references, or values per question. Out: numbers between 0 and 1, and means with 95 % intervals.

    exact match, F1    SQuAD's (arXiv 1606.05250): lower case, no punctuation, no articles; F1 over words. For Korean
                       KorQuAD's (arXiv 1909.07005): no brackets, quotes and ASCII punctuation; F1 over characters
    contains           1 if a reference stands in the prediction, normalised as above
    ROUGE-L            F-measure of the longest common subsequence of words (Lin 2004), without stemming; words are runs
                       of letters and digits of any script (the reference implementation knows a-z and 0-9 only)
    interval           bootstrap over clusters: questions about the same documents are not independent

Against several references the best counts, as in SQuAD.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

REFUSAL = re.compile(  # an answer that says that there is none
    r"\b(?:passages?|texts?|documents?|context|article|it) (?:do|does)(?: not|n't) (?:\w+ )?"
    r"(?:mention|say|specify|provide|state|tell|contain|give|answer)\b"
    r"|\b(?:is|are|was|were)(?: not|n't) (?:\w+ )?(?:mentioned|specified|provided|stated|given|said|told)\b"
    r"|\b(?:no|not enough|insufficient) (?:\w+ )?information\b|\bno (?:mention|answer)\b"
    r"|\b(?:cannot|can't|can not) (?:be )?(?:\w+ )?(?:answer(?:ed)?|determined?|sa(?:y|id)|t(?:ell|old)|f(?:i|ou)nd)\b"
    r"|\bi (?:do not|don't) know\b|\bi(?:'m| am) not sure\b|\b(?:unanswerable|unclear)\b|^\W*(?:unknown|n/a|none)\W*$"
    r"|알 수 없|언급되지 않|언급이 없|나와 있지 않|정보가 없",
    re.IGNORECASE,
)
_KOREAN_BLANK = re.compile("['\"《》<>〈〉()‘’]")
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")  # string.punctuation, as both scripts have it


def normalise(text: str, language: str = "en") -> str:
    """SQuAD's normalisation; of Korean ("ko") KorQuAD's."""
    text = text.lower()
    if language == "ko":
        return " ".join(_PUNCTUATION.sub("", _KOREAN_BLANK.sub(" ", text)).split())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", _PUNCTUATION.sub("", text)).split())


def units(text: str, language: str = "en") -> list[str]:
    """What F1 and ROUGE-L count: normalised words; of Korean the characters without spaces."""
    words = normalise(text, language).split()
    return list("".join(words)) if language == "ko" else words


def exact_match(prediction: str, answers: Sequence[str], language: str = "en") -> float:
    """1 if the prediction is one of the answers, normalised."""
    said = normalise(prediction, language)
    return float(any(said == normalise(answer, language) for answer in answers))


def contains(prediction: str, answers: Sequence[str], language: str = "en") -> float:
    """1 if one of the answers stands in the prediction, at word borders. Korean words may stand inside a longer one
    (particles follow them, compounds hold them), numbers and Latin names only before a particle."""
    said = normalise(prediction, language)

    def stands(answer: str) -> bool:
        hangul = [language == "ko" and "가" <= end <= "힣" for end in (answer[0], answer[-1])]
        before = "" if hangul[0] else r"(?<!\w)"
        after = "" if hangul[1] else r"(?![^\W가-힣])" if language == "ko" else r"(?!\w)"
        return bool(re.search(before + re.escape(answer) + after, said))

    return float(any(stands(one) for answer in answers if (one := normalise(answer, language))))


def _f(hits: int, said: int, wanted: int) -> float:
    return 2 * hits / (said + wanted) if hits else 0.0


def f1(prediction: str, answers: Sequence[str], language: str = "en") -> float:
    """Overlap of prediction and answer as bags of units: 2PR / (P + R)."""
    said = units(prediction, language)

    def one(answer: str) -> float:
        wanted = units(answer, language)
        if not said or not wanted:
            return float(said == wanted)
        return _f((Counter(said) & Counter(wanted)).total(), len(said), len(wanted))

    return max(map(one, answers), default=0.0)


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = 0
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], before + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(prediction: str, answers: Sequence[str], language: str = "en") -> float:
    """F-measure of the longest common subsequence; units are runs of letters and digits, of Korean characters."""

    def split(text: str) -> list[str]:
        return units(text, "ko") if language == "ko" else re.findall(r"[^\W_]+", text.lower())

    said = split(prediction)
    return max((_f(common_subsequence(said, w := split(answer)), len(said), len(w)) for answer in answers), default=0.0)


def refuses(prediction: str) -> bool:
    """Whether an answer says that there is none, or says nothing."""
    return not any(c.isalnum() for c in prediction) or bool(REFUSAL.search(prediction))


# --- retrieval -------------------------------------------------------------------------------------------------------

Span = tuple[str, int, int]  # document, start, end


def holds(passage: Span, evidence: Sequence[Span]) -> bool:
    """Whether a passage covers half of one of the places of a piece of evidence (or half of it is inside one)."""
    for document, start, end in evidence:
        overlap = min(end, passage[2]) - max(start, passage[1])
        if document == passage[0] and overlap > 0 and 2 * overlap >= min(end - start, passage[2] - passage[1]):
            return True
    return False


def recall(ranking: Sequence[Span], evidence: Sequence[Sequence[Span]], k: int) -> float:
    """Share of the pieces of evidence that one of the first k passages holds."""
    return sum(any(holds(passage, piece) for passage in ranking[:k]) for piece in evidence) / len(evidence)


def reciprocal_rank(ranking: Sequence[Span], evidence: Sequence[Sequence[Span]]) -> float:
    """1 / rank of the first passage that holds any piece of evidence; 0 if none does."""
    for rank, passage in enumerate(ranking, start=1):
        if any(holds(passage, piece) for piece in evidence):
            return 1 / rank
    return 0.0


# --- means and their intervals ---------------------------------------------------------------------------------------


def bootstrap(
    statistic: Callable[[Any], Any], values: Sequence[Sequence[float]], clusters: Sequence[Hashable] | None = None,
    seed: int = 0, repeats: int = 2000,
) -> tuple[float | None, float | None]:  # fmt: skip
    """95 % interval of a statistic of means: clusters are drawn with replacement, 2.5 and 97.5 % of what comes out.

    None, None for fewer than three clusters: drawing from one or two says nothing about others.
    values: rows of one or more columns. statistic: means (..., columns) -> (...), a ratio of means for example.
    """
    import numpy as np

    table = np.asarray(values, dtype=float)  # (n, columns)
    names = {name: i for i, name in enumerate(dict.fromkeys(clusters if clusters is not None else range(len(table))))}
    if len(names) < 3:
        return None, None
    owner = np.array([names[c] for c in clusters] if clusters is not None else range(len(table)))
    sums = np.zeros((len(names), table.shape[1]))
    np.add.at(sums, owner, table)
    counts = np.bincount(owner, minlength=len(names)).astype(float)
    drawn = np.random.default_rng(seed).integers(len(names), size=(repeats, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)[:, None]  # (repeats, columns)
    low, high = np.nanpercentile(statistic(means), [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)


def interval(values: Sequence[float], clusters: Sequence[Hashable] | None = None, seed: int = 0) -> dict[str, Any]:
    """{"mean", "low", "high", "n"} of values, which belong to `clusters` (each to its own if None); see `bootstrap`.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values, no mean")
    low, high = bootstrap(lambda means: means[:, 0], [[value] for value in values], clusters, seed)
    return {"mean": round(sum(values) / len(values), 4), "low": low, "high": high, "n": len(values)}
