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
from memo.generate import LocalGenerator, Prompt, write
from memo.memory import inference
from memo.models import Embedder
from memo.passages import Passage, split
from memo.search import DEPTH, Ranked, fuse, place_of, within
from memo.settings import Settings
from memo.train.lessons import Asked, Lesson
from memo.train.recipe import Rewarding

FIRST = 3  # passages that recall counts


class Judge:
    """Rewards the clues of a question by the passages they find in its lesson's documents.

    clue_weight: of all clues together, the question has 1. With the little weight that they have in answering hardly
    any clue would change what is found, and there would be nothing to tell good ones by; nor do names lead on here.
    """

    def __init__(
        self, embedder: Embedder, generator: LocalGenerator, settings: Settings,
        clue_weight: float = Rewarding.clue_weight,
    ) -> None:  # fmt: skip
        self.embedder, self.generator, self.settings, self.clue_weight = embedder, generator, settings, clue_weight

    def passages(self, lesson: Lesson) -> list[Passage]:
        """Of all documents; a document's id is its number."""
        documents = [Document(str(number), str(number), text) for number, text in enumerate(lesson.documents)]
        size = self.settings.passage_tokens
        return [passage for document in documents for passage in split(document, self.embedder.tokenizer, size)]

    def ranked(
        self, question: str, recalled: Sequence[Clue], passages: Sequence[Passage], vectors: Tensor
    ) -> list[Ranked]:
        """Passages, best first, by question and clues. vectors: (P, D) of the passages."""
        queries = answers.clue_queries(question, recalled, self.clue_weight)
        asked = torch.tensor(self.embedder.encode([query.texts[0] for query in queries]))
        rankings = []
        for query, similarity in zip(queries, asked @ vectors.T, strict=True):
            order = similarity.argsort(descending=True)[:DEPTH].tolist()
            hits = [{**place_of(passages[i]), "similarity": float(similarity[i])} for i in order]
            rankings.append((query.label, query.weight, hits))
        return fuse(rankings)

    def prompt(self, lesson: Lesson, question: str, ranking: Sequence[Ranked]) -> Prompt:
        """The answer prompt of every strategy, with the passages that fit the budget; documents go by their numbers."""
        order = [str(number) for number in range(len(lesson.documents))]
        found = within(
            ranking, lambda document, start, end: lesson.documents[int(document)][start:end], self.generator.count,
            self.settings.context_tokens, order,
        )  # fmt: skip
        shown = "\n\n".join(f"[{int(passage.document) + 1}]\n{passage.text.strip()}" for passage in found)
        user = answers.ASK.format(passages=shown, question=question)
        return Prompt((("system", answers.SYSTEM), ("user", user)), self.settings.answer_tokens)

    def reward(self, kind: str, lesson: Lesson, asked: Asked, ranking: Sequence[Ranked]) -> float:
        """Of a ranking, see above."""
        if kind == "recall":
            places = [(one.hit["document"], one.hit["start"], one.hit["end"]) for one in ranking]
            return recall(places, [[(str(number), start, end)] for number, start, end in asked.evidence], FIRST)
        prompt = self.prompt(lesson, asked.question, ranking)
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
        return f1(write(self.generator, prompt).text, asked.answers)
