"""SFT: the memory learns to bring back the clues that a question needs.

In: lessons (documents, questions, clues). Out: a loss per lesson,

    L = -mean_t log p(y_t | memory of the documents, question, y_<t)

for clues y of each kind, asked for as `memo.clues` does, and for short answers, asked for as `memory_only` does.

Source: MemoRAG (arXiv 2409.05591v3), section 2.3.2, equation 14. The documents of a lesson are memorized one by one and
put side by side, as in a library. What is learnt is what the memory keeps, and a small adapter of the reader that is
active only behind a memory (`memo.adapter`); the model itself stays frozen.
Gradients flow through the memory tokens of all windows, not through the plain reading of later ones: half the cost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memo import clues
from memo.answers import memory_prompt
from memo.attention import Slots
from memo.errors import SettingsError
from memo.generate import LocalGenerator, Prompt
from memo.memory import MemoryModel
from memo.placement import windows
from memo.train.lessons import NOTHING, Lesson, elsewhere
from memo.train.loop import drawn
from memo.train.pretrain import behind, read
from memo.train.recipe import Tuning


@dataclass(frozen=True)
class Target:
    """What is to be said after a prompt. kind: of the clue, or "answer"."""

    kind: str
    prompt: tuple[int, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Documents:
    """What one example is about, in tokens."""

    documents: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return 1

    @property
    def tokens(self) -> int:
        return sum(map(len, self.documents))


@dataclass(frozen=True)
class Group(Documents):
    """One lesson in tokens, and the ratio its documents are memorized at."""

    targets: tuple[Target, ...]
    ratio: int


def said(kind: str, texts: Sequence[str]) -> str:
    """Clues as the model is to write them, behind the beginning that it is given; no more of them than are read."""
    texts, begin = texts[: clues.LINES], clues.KINDS[kind][2]
    if kind == "span":
        return '"\n"'.join(texts) + '"'
    if kind == "question":
        return "\n".join([texts[0], *(f"{number}. {text}" for number, text in enumerate(texts[1:], 2))])
    return f"\n{begin}".join(texts)


class Encoder:
    """Lessons -> tokens, as the generator would see them."""

    def __init__(self, reader: MemoryModel, most: int) -> None:
        self.reader, self.most = reader, most
        self.generator = LocalGenerator(reader, "")

    def targets(self, lesson: Lesson) -> tuple[Target, ...]:
        """Of every question and kind; what is longer than `most` tokens is cut, and has no end then."""
        found = []
        for asked in lesson.questions:
            for kind, texts in asked.clues.items():
                if texts:
                    found.append(self._clue(kind, asked.question, said(kind, texts)))
            if asked.answers or NOTHING in asked.clues.get("draft", ()):
                text = asked.answers[0] if asked.answers else NOTHING
                found.append(self._target("answer", memory_prompt(asked.question, 1), text))
        return tuple(found)

    def written(self, question: str, texts: dict[str, str]) -> tuple[Target, ...]:
        """Clues as they were written, kind by kind."""
        return tuple(self._clue(kind, question, text) for kind, text in texts.items())

    def documents(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """The tokens of each."""
        return tuple(tuple(self.reader.encode(text)[0]) for text in texts)

    def _clue(self, kind: str, question: str, text: str) -> Target:
        return self._target(kind, clues.prompt(kind, question, 1), text)

    def _target(self, kind: str, prompt: Prompt, text: str) -> Target:
        ids = [*self.reader.encode(text, start=False)[0], self.generator.end]
        return Target(kind, tuple(self.generator.encode(prompt)), tuple(ids[: self.most]))


def memorize(reader: MemoryModel, documents: Sequence[Sequence[int]], window: int, ratio: int) -> Slots:
    """Documents memorized one by one, their slots side by side."""
    parts, begins = [], []
    for ids in documents:
        text = torch.tensor([ids], device=reader.device)
        for start, stop in windows(len(ids), window):
            parts.append(text[:, start:stop])
            begins.append(start == 0)
    return read(reader, parts, [ratio] * len(parts), begins, through_text=False)[0]


def log_probs(reader: MemoryModel, slots: Slots, targets: Sequence[Target]) -> list[Tensor]:
    """log p of each token of each target after the memory and its prompt. (t,) each"""
    rows = [torch.tensor([target.prompt + target.ids], device=reader.device) for target in targets]
    found = []
    hidden = behind(reader, slots, [row[:, :-1] for row in rows])
    for target, row, one in zip(targets, rows, hidden, strict=True):
        first = len(target.prompt)
        found.append(-reader.surprise(one[:, first - 1 :], row[:, first:])[0])
    return found


def losses(reader: MemoryModel, group: Group, plan: Tuning) -> dict[str, Tensor]:
    """`loss`, the mean over all targets, and the mean of each kind. (1,) each"""
    slots = memorize(reader, group.documents, plan.window, group.ratio)
    each = torch.stack([-one.mean() for one in log_probs(reader, slots, group.targets)])  # (targets,)
    kinds = [target.kind for target in group.targets]
    found = {"loss": each.mean()[None]}
    for kind in dict.fromkeys(kinds):
        found[kind] = each[[i for i, other in enumerate(kinds) if other == kind]].mean()[None]
    return found


def groups(reader: MemoryModel, lessons: Sequence[Lesson], plan: Tuning) -> Callable[[int], list[Group]]:
    """`micro_batches` for the loop, of those lessons that have something to teach.

    Raises:
        SettingsError: fewer lessons than a step needs.
    """
    lessons = [lesson for lesson in lessons if any(q.answers or any(q.clues.values()) for q in lesson.questions)]
    if len(lessons) < plan.batch:
        told = f"{len(lessons)} lessons do not fill a step of {plan.batch}."
        raise SettingsError(told, "Give more, or a smaller batch.")
    encoder = Encoder(reader, plan.most)

    def micro_batches(step: int) -> list[Group]:
        draw = random.Random(f"{plan.seed} step {step}")
        made = []
        for index in drawn(len(lessons), plan, step):
            lesson, other = lessons[index], lessons[draw.randrange(len(lessons))]
            if draw.random() < plan.nothing:
                lesson = elsewhere(lesson, other)
            documents = encoder.documents(lesson.documents)
            made.append(Group(documents, encoder.targets(lesson), draw.choice(plan.ratios)))
        return made

    return micro_batches
