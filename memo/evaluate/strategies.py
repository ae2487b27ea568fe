"""Strategies that exist to be compared with: words or meaning alone, rag with names, memorag less one part at a time.

In: an `Ask` (memo.answers). Out: the same steps as every strategy there yields. The parts search by the clues that
memorag itself has recalled for the question, so that nothing but the search differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from memo import answers
from memo.answers import Ask, Steps, clue_queries, leading
from memo.search import Query

TOLD = {  # what each strategy gets, beside the same generator, answer prompt, budget of passages and decoding
    "closed_book": "the question",
    "full_context": "the documents themselves, as far as they fit the generator (cut: the share that did not), and the"
    " question",
    "bm25": "passages by the question's words alone (BM25; k1 1.2, b 0.75)",
    "dense": "passages by the question's embedding alone",
    "rag": "passages by the question's embedding and words, fused with a weight chosen on train splits",
    "hyde": "as rag, by the mean embedding and the words of the question and a made-up passage (arXiv 2212.10496)",
    "rq_rag": "as rag, by the question and up to three simpler questions, fused with"
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


def bm25(ask: Ask) -> Steps:
    """The strategy that looks the question's words up."""
    [found] = ask.library.rank_words([Query("question", (ask.question,))])
    yield ask.keep([("question", 1.0, found)])
    yield ask.answer_prompt()


def dense(ask: Ask) -> Steps:
    """The strategy that looks the question's embedding up."""
    [found] = ask.library.index.rank([Query("question", (ask.question,))])
    yield ask.keep([("question", 1.0, found)])
    yield ask.answer_prompt()


OTHERS: dict[str, Callable[[Ask], Steps]] = {"bm25": bm25, "dense": dense, "rag-names": rag_names}
SEARCHING = ("bm25", "dense", "rag", "hyde", "rq_rag", "rag-names")
WITH_PASSAGES = (*SEARCHING, "memorag", *PARTS)
EVERY = ("closed_book", "full_context", *SEARCHING, "memory_only", "memorag", *PARTS)
assert set(EVERY) == set(TOLD) == {*answers.STRATEGIES, *OTHERS, *PARTS}
