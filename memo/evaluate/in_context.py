"""In-context RAG for perplexity: before a stretch of text stands the passage that the text so far brings up.

In: the tokens of a corpus that may be looked up (learnt text), blocks of another that are to be predicted. Out: the
same tokens to predict, written anew as a `TokenFile` of prompts, one a stretch, so that `perplexity.read` reads them
like any text:

    p(x_t | d, x_<t),      d = argmax over passages of BM25(words of d, words of the `query` tokens before the stretch)

Source: Memory Decoder (arXiv 2508.09874v2), section 4 (baselines), after In-Context RALM (arXiv 2302.00083), where
another passage is looked up every 4 tokens. Ours, so that it can be afforded: every `refresh` (64) tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import bm25s
import numpy as np

from memo.cite import words
from memo.datastore import Block, context_numbers
from memo.evaluate.adaptation import Rivals
from memo.train.texts import TokenFile, joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def same_document(ids: np.ndarray, numbers: np.ndarray, learnt: TokenFile, known: np.ndarray) -> list[int]:
    """The documents of a corpus that are one with a document: half of the stretches of either stand in the other.

    ids: of the document. numbers, known: `context_numbers` of it and of the corpus; 0 where less tokens stand before.
    """
    found, mine = [], np.unique(numbers[numbers != 0])
    shared = np.isin(known, mine)
    for number, (begin, end) in enumerate(itertools.pairwise(learnt.bounds)):
        theirs = int((known[begin:end] != 0).sum())
        least = max(1, min(len(mine), theirs)) / 2
        equal = len(ids) == end - begin and bool((ids == learnt.ids[begin:end]).all())
        if equal or int(shared[begin:end].sum()) >= least:
            found.append(number)
    return found


class Passages:
    """BM25 over the passages of a corpus: documents cut every `size` tokens, compared by their words."""

    def __init__(self, learnt: TokenFile, tokenizer: PreTrainedTokenizerFast, size: int) -> None:
        self.learnt, self.tokenizer = learnt, tokenizer
        spans = [(start, min(start + size, end), number)
                 for number, (begin, end) in enumerate(itertools.pairwise(learnt.bounds))
                 for start in range(begin, end, size)]  # fmt: skip
        self.ids = [np.asarray(learnt.ids[start:end]) for start, end, _ in spans]
        self.documents = np.array([number for _, _, number in spans])
        self.numbers = context_numbers(learnt)
        self.bm25 = bm25s.BM25()
        self.bm25.index([self.words(ids) for ids in self.ids], show_progress=False)

    def words(self, ids: np.ndarray) -> list[str]:
        return words(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    def allowed(self, ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """(passages,) float32: 0 for those of the document itself, where the corpus has it, else 1."""
        own = same_document(ids, numbers, self.learnt, self.numbers)
        return (~np.isin(self.documents, own)).astype(np.float32)

    def best(self, query: np.ndarray, allowed: np.ndarray | None = None) -> int | None:
        """The passage that suits the tokens of a query best; None where none shares a word with it."""
        asked = [word for word in self.words(query) if word in self.bm25.vocab_dict]
        if not asked:
            return None
        found, scores = self.bm25.retrieve([asked], k=1, show_progress=False, weight_mask=allowed)
        return int(found[0][0]) if scores[0][0] > 0 else None


def prompts(
    passages: Passages, tokens: TokenFile, some: Sequence[Block], rivals: Rivals, positions: int
) -> tuple[TokenFile, list[Block]]:
    """Blocks of `tokens` as prompts with a passage each. -> their token file, and its blocks: the same tokens count, in
    the same order

    positions: of the model; where they hold less than passage and block, the block begins later.
    """
    numbers, masks = context_numbers(tokens), dict[int, np.ndarray]()
    texts, firsts = [], []
    for block in some:
        document = tokens.document_of(block.first)
        begin, end = tokens.bounds[document : document + 2]
        if document not in masks:
            masks[document] = passages.allowed(np.asarray(tokens.ids[begin:end]), numbers[begin:end])
        for first in range(block.first, block.end, rivals.refresh):
            stop = min(first + rivals.refresh, block.end)
            found = passages.best(np.asarray(tokens.ids[max(begin, first - rivals.query) : first]), masks[document])
            before = passages.ids[found] if found is not None else passages.ids[0][:0]
            start = max(block.start, stop - (positions - len(before)))
            texts.append(np.concatenate([before, tokens.ids[start:stop]]))
            firsts.append(len(before) + first - start)
    made = joined(texts)
    pairs = zip(itertools.pairwise(made.bounds), firsts, strict=True)
    return made, [Block(begin, end, begin + first) for (begin, end), first in pairs]
