"""Rewards: what clues are worth to the generator.

In: a lesson, a question of it, the clues that were recalled. Out: a number up to 1 (of likelihood: up to 0), the higher
the better, from the passages that question and clues find together. Which one is a choice of the task:

    recall      share of the evidence among the first passages
    likelihood  mean log p(answer | passages, question) of the frozen generator
    f1          of what the generator answers

Source: MemoRAG (arXiv 2409.05591v3), appendix B: clues are ranked by the quality of the final answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memo import answers
from memo.attention import Row, run
from memo.documents import Document
from memo.evaluate.metrics import f1, recall
from memo.events import Clue
from memo.generate import LocalGenerator, Prompt
from memo.memory import inference
from memo.models import Embedder
from memo.passages import Passage, split
from memo.search import fuse, place_of
from memo.settings import Settings
from memo.train.lessons import Asked, Lesson

REWARDS = ("recall", "likelihood", "f1")
FIRST = 3  # passages that recall counts


class Judge:
    """Rewards the clues of a question by the passages they find in its lesson's documents."""

    def __init__(self, embedder: Embedder, generator: LocalGenerator, settings: Settings) -> None:
        self.embedder, self.generator, self.settings = embedder, generator, settings

    def passages(self, lesson: Lesson) -> list[Passage]:
        """Of all documents; a document's id is its number."""
        documents = [Document(str(number), str(number), text) for number, text in enumerate(lesson.documents)]
        size = self.settings.passage_tokens
        return [passage for document in documents for passage in split(document, self.embedder.tokenizer, size)]

    def ranked(
        self, question: str, recalled: Sequence[Clue], passages: Sequence[Passage], vectors: Tensor
    ) -> list[int]:
        """Indices of passages, best first, by question and clues. vectors: (P, D) of the passages."""
        queries = answers.clue_queries(question, recalled)
        asked = torch.tensor(self.embedder.encode([query.texts[0] for query in queries]))
        rankings = []
        for query, similarity in zip(queries, asked @ vectors.T, strict=True):
            order = similarity.argsort(descending=True).tolist()
            hits = [{**place_of(passages[i]), "similarity": float(similarity[i])} for i in order]
            rankings.append((query.label, query.weight, hits))
        at = {(passage.document, passage.start): i for i, passage in enumerate(passages)}
        return [at[one.hit["document"], one.hit["start"]] for one in fuse(rankings)]

    def prompt(self, question: str, chosen: Sequence[Passage]) -> Prompt:
        """The answer prompt of every strategy, with the passages in the order of the documents."""
        ordered = sorted(chosen, key=lambda passage: (int(passage.document), passage.start))
        shown = "\n\n".join(passage.text.strip() for passage in ordered)
        user = answers.ASK.format(passages=shown, question=question)
        return Prompt((("system", answers.SYSTEM), ("user", user)), self.settings.answer_tokens)

    def fitting(self, order: Sequence[int], passages: Sequence[Passage]) -> list[Passage]:
        """The first passages that fit the budget."""
        chosen, room = [], self.settings.context_tokens
        for index in order:
            room -= self.generator.count(passages[index].text)
            if chosen and room < 0:
                break
            chosen.append(passages[index])
        return chosen

    def reward(self, kind: str, asked: Asked, order: Sequence[int], passages: Sequence[Passage]) -> float:
        """Of a ranking, see above."""
        if kind == "recall":
            ranking = [(passages[i].document, passages[i].start, passages[i].end) for i in order]
            return recall(ranking, [[(str(number), start, end)] for number, start, end in asked.evidence], FIRST)
        prompt = self.prompt(asked.question, self.fitting(order, passages))
        return self.likelihood(prompt, asked.answers[0]) if kind == "likelihood" else self.answered(prompt, asked)

    def likelihood(self, prompt: Prompt, answer: str) -> float:
        """Mean log p of the answer's tokens after the prompt."""
        model = self.generator.model
        first = self.generator.encode(prompt)
        ids = torch.tensor([first + model.encode(answer, start=False)[0]], device=model.device)
        with inference(model):
            hidden = run(model.model, model.model.get_input_embeddings()(ids[:, :-1]), [Row()])
            return -model.surprise(hidden[:, len(first) - 1 :], ids[:, len(first) :]).mean().item()

    def answered(self, prompt: Prompt, asked: Asked) -> float:
        """F1 of the generator's answer."""
        writing = self.generator.open()
        stream = writing.add(prompt)
        while writing.step():
            pass
        return f1(stream.text, asked.answers)
