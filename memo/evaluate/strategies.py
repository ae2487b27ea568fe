"""Strategies that exist to be compared with: BM25, rag with names, memorag with its parts switched off one at a time.

In: an `Ask` (memo.answers). Out: the same steps as every strategy there yields. The parts search by the clues that
memorag itself has recalled for the question, so that nothing but the search differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memo import answers
from memo.answers import Ask, Steps, clue_queries, leading
from memo.cite import words
from memo.search import DEPTH, Query, place_of

if TYPE_CHECKING:
    from memo.passages import Passage

TOLD = {  # what each strategy gets, beside the same generator, answer prompt, budget of passages and decoding
    "closed_book": "the question",
    "full_context": "the documents themselves, as far as they fit the generator (cut: the share that did not), and the"
    " question",
    "bm25": "passages by BM25 (bm25s; k1 1.5, b 0.75) over the question's words",
    "rag": "passages by the question's embedding",
    "hyde": "passages by the mean embedding of the question and a made-up passage (arXiv 2212.10496)",
    "rq_rag": "passages by the question and up to three simpler questions, fused with"
    " the same weight, which was not tuned (after arXiv 2404.00610, untrained)",
    "memory_only": "the memory of the documents and the question, no passages",
    "rag-names": "rag, and the names that lead on from what it finds (memo.names, chosen on train splits), but"
    " no memory: memorag less this is what the memory adds",
    "memorag": "passages by the question, the clues recalled from memory, where in it the question looked and the names"
    " that lead on, fused with weights chosen on train splits; once for each library it also reads a neutral question,"
    " not counted",
    "memorag-spans": "memorag without clues that quote",
    "memorag-questions": "memorag without clues that are simpler questions",
    "memorag-draft": "memorag without the clue that is a draft answer",
    "memorag-keys": "memorag without clues that are key points",
    "memorag-names": "memorag without the names that lead on",
    "memorag-pointers": "memorag without where the question looked",
    "memorag-question": "memorag without searching the question itself",
    "pointers": "passages by where in memory the question looked, alone",
}


@dataclass(frozen=True)
class Part:
    """memorag less something. without: a kind of clues."""

    without: str = ""
    question: bool = True
    texts: bool = True
    pointers: bool = True


PARTS = {
    "memorag-spans": Part(without="span"),
    "memorag-questions": Part(without="question"),
    "memorag-draft": Part(without="draft"),
    "memorag-keys": Part(without="key"),
    "memorag-names": Part(without="name"),
    "memorag-pointers": Part(pointers=False),
    "memorag-question": Part(question=False),
    "pointers": Part(question=False, texts=False),
}


def recalled(ask: Ask, part: Part) -> Steps:
    """memorag from its clues on (`ask.edited`, `ask.memory`, `ask.looked`), with what `part` leaves of it."""
    ask.clues = tuple(clue for clue in ask.edited or () if clue.kind != part.without)
    queries = clue_queries(ask.question, ask.clues)
    queries = queries[:1] * part.question + queries[1:] * part.texts
    yield ask.search(queries, part.pointers, leading(ask.clues) if part.texts else ())
    yield ask.answer_prompt()


def rag_names(ask: Ask) -> Steps:
    """The strategy that looks the question up, and the names in what it finds."""
    yield ask.search([Query("question", (ask.question,))], leading=ask.names())
    yield ask.answer_prompt()


class WordIndex:
    """BM25 over passages; words are those citations are compared by, so Korean is searched by pairs of characters."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        import bm25s

        self.passages = list(passages)
        self.bm25 = bm25s.BM25()
        self.bm25.index([words(passage.text) for passage in passages], show_progress=False)

    def rank(self, question: str) -> list[dict[str, Any]]:
        """Passages that share a word with the question, best first."""
        asked = [word for word in words(question) if word in self.bm25.vocab_dict]
        if not asked:
            return []
        depth = min(DEPTH, len(self.passages))
        found, scores = self.bm25.retrieve([asked], k=depth, show_progress=False)
        return [
            {**place_of(self.passages[int(i)]), "similarity": float(score)}
            for i, score in zip(found[0], scores[0], strict=True) if score > 0
        ]  # fmt: skip


def bm25(index: WordIndex) -> Callable[[Ask], Steps]:
    """The strategy that looks the question's words up in `index`."""

    def steps(ask: Ask) -> Steps:
        yield ask.keep([("question", 1.0, index.rank(ask.question))])
        yield ask.answer_prompt()

    return steps


EVERY = ("closed_book", "full_context", "bm25", "rag", "hyde", "rq_rag", "rag-names", "memory_only", "memorag", *PARTS)
WITH_PASSAGES = ("bm25", "rag", "hyde", "rq_rag", "rag-names", "memorag", *PARTS)
assert set(EVERY) == set(TOLD) == {*answers.STRATEGIES, "bm25", "rag-names", *PARTS}
