"""A short training on a person's own documents: what is read, what is held out, the loss before and after.

In: a `MemoryModel` of its own modules whose weights are trained, and the tokens of the documents (pre-training) or
lessons (SFT); from pairs of questions and answers and the documents they are about, lessons. Out: a `Course`, which
`run` goes through; `held_loss`, the mean loss of what is held out. The plans are those of the recipe, cut down to what
one person's documents fill and a machine without a GPU can do while somebody waits.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from memo.cite import words
from memo.errors import LessonsError, TooLittleText
from memo.evaluate.data import Question, QuestionSet, Shelf, loose
from memo.memory import MemoryModel
from memo.passages import sentences
from memo.train import lessons, loop, pretrain, sft
from memo.train.lessons import TOGETHER, Lesson, Offsets
from memo.train.recipe import Pretraining, Tuning, checked
from memo.train.texts import Piece, TokenFile, joined, pieces

if TYPE_CHECKING:
    from accelerate import Accelerator

    from memo.documents import Document

LEAST, MOST = 2, 3  # windows of a piece
WINDOWS = 5  # sizes of window that are tried, each half of the one before
HELD = 4  # pieces or lessons that are held out at most
SHARE = 5  # one of so many is held out: of a document's tokens, of the lessons
TOKENS = 1536  # of a lesson's documents at most
STRETCH = 384  # tokens of a stretch of a document that a lesson is made of
LESSONS = 200  # that are taken at most
PLACES = 20  # of an answer in a document that are looked at
LITTLE = "Put in a longer document, some pages at least."


@dataclass(frozen=True)
class Course:
    """What is trained on, in which steps. held: what is only measured, drawn once."""

    plan: Pretraining | Tuning
    groups: Callable[[int], Sequence[Any]]
    losses: Callable[[Any], dict[str, Tensor]]
    held: tuple[Any, ...]


def reading(reader: MemoryModel, tokens: TokenFile, steps: int, rate: float, window: int) -> Course:
    """Pre-training on documents. The last fifth of each is held out.

    window: the largest that is tried; the documents must fill several pieces of at least two.

    Raises:
        TooLittleText: they do not fill them at any size.
    """
    spans = list(pairwise(tokens.bounds))
    cuts = [end - (end - begin) // SHARE for begin, end in spans]
    learnt, held = (
        joined([tokens.ids[begin:end] for begin, end in some])
        for some in (
            [(begin, cut) for (begin, _), cut in zip(spans, cuts, strict=True)],
            [(cut, end) for (_, end), cut in zip(spans, cuts, strict=True)],
        )
    )
    for size in (window >> half for half in range(WINDOWS)):
        there, kept = (pieces(one, size, MOST, LEAST, 0, 0) for one in (learnt, held)) if size >= 16 else ([], [])
        if len(there) >= 2 and kept:
            break
    else:
        raise TooLittleText("There is too little text to train on.", LITTLE)
    span = (min(32, size // 2), min(96, size))
    plan = checked(Pretraining(
        steps=steps, batch=1, micro=1, learning_rate=rate, save_every=steps, window=size, windows=MOST, least=LEAST,
        span=span, given=(min(4, span[0] - 1), min(12, span[0] - 1)),
    ))  # fmt: skip
    chosen = [_held(held, piece, plan) for piece in sorted(kept, key=lambda one: one.start)[:: -(-len(kept) // HELD)]]
    return Course(plan, pretrain.groups(learnt, plan), partial(pretrain.losses, reader, plan=plan), tuple(chosen))


def _held(tokens: TokenFile, piece: Piece, plan: Pretraining) -> pretrain.Batch:
    return pretrain.make(tokens, [piece], plan, random.Random(f"held {piece.start}"))


def tuning(
    reader: MemoryModel, known: Sequence[Lesson], steps: int, rate: float, window: int, ratio: int
) -> Course:
    """SFT on lessons. Every fifth is held out, of fewer one. ratio: the held-out ones' documents are read at.

    Raises:
        TooLittleText: there are not two lessons.
    """
    taught = [lesson for lesson in known if any(one.answers or any(one.clues.values()) for one in lesson.questions)]
    if len(taught) < 2:
        raise TooLittleText("There are too few lessons to train on: one is held out.", "Give more questions.")
    held = taught[SHARE - 1 :: SHARE][:HELD] or taught[-1:]
    learnt = [lesson for lesson in taught if lesson not in held] or taught[:1]
    plan = checked(Tuning(
        steps=steps, batch=1, micro=1, learning_rate=rate, save_every=steps, window=window,
    ))  # fmt: skip
    encoder = sft.Encoder(reader, plan.most)
    groups = [sft.Group(encoder.documents(one.documents), encoder.targets(one), ratio) for one in held]
    return Course(plan, sft.groups(reader, learnt, plan), partial(sft.losses, reader, plan=plan), tuple(groups))


def held_loss(course: Course, accelerator: Accelerator) -> float:
    """The mean loss, in nats per token as it is minimized, of what is held out."""
    with torch.no_grad(), accelerator.autocast():
        return sum(float(course.losses(group)["loss"].mean()) for group in course.held) / len(course.held)


def run(
    reader: MemoryModel, course: Course, folder: Path, accelerator: Accelerator, told: Callable[[dict[str, Any]], None]
) -> None:
    """Trains `reader.weights`; what `told` raises ends it, with what was learnt up to there. folder: of the loop.

    Raises:
        TrainingFailed: gradients that are not finite.
    """
    about = {"model": reader.fingerprint}
    loop.train(reader.weights, course.groups, course.losses, course.plan, folder, about, accelerator, told)


def rounded(reader: MemoryModel) -> None:
    """The weights as bfloat16 holds them: what is measured is what is saved."""
    with torch.no_grad():
        for parameter in reader.weights.parameters():
            parameter.copy_(parameter.bfloat16())


# --- lessons ---------------------------------------------------------------------------------------------------------


def placed(question: str, answers: Sequence[str], documents: Sequence[Document]) -> Question | None:
    """The question with where in the documents its answer stands; of several places that whose sentence shares most
    words with the question. None: nowhere."""
    asked, most, best = set(words(question)), -1, None
    for document in documents:
        found = [match.span() for answer in answers for match in islice(loose(answer).finditer(document.text), PLACES)]
        whole = sentences(document.text) if found else []
        for start, end in found:
            sentence = next((document.text[a:b] for a, b in whole if a <= start < b), "")
            shared = len(asked & set(words(sentence)))
            if shared > most:
                most, best = shared, (document, start, end)
    if best is None:
        return None
    document, start, end = best
    key, shelf = f"{document.id}/{start}/{question}", Shelf(document.id, (document,))
    return Question(key, question, tuple(answers), True, (((document.id, start, end),),), shelf)


def of_pairs(
    pairs: Sequence[tuple[str, Sequence[str]]], documents: Sequence[Document], offsets: Offsets
) -> list[Lesson]:
    """Lessons of questions and answers; those whose answer stands in no document are left out. offsets: see lessons."""
    found = tuple(one for question, answers in pairs if answers and (one := placed(question, answers, documents)))
    every = lessons.from_questions(QuestionSet("own", "own", "en", False, found), offsets, STRETCH, {})
    return list(every)[:LESSONS]


def read_lessons(text: str, tokens: Callable[[str], int]) -> list[Lesson]:
    """The lessons of a file's text, a JSON object a line. tokens: how many a text has.

    Raises:
        LessonsError: a line is no lesson, its documents are too long, or there are too many.
    """
    found: list[Lesson] = []
    for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
        try:
            lesson = lessons.of(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            hint = "It needs documents and questions, as memo train synthesize writes them."
            raise LessonsError(f"Line {number} is no lesson.", hint) from error
        if number > LESSONS:
            raise LessonsError(f"There are more than {LESSONS} lessons.", "Split the file.")
        if sum(map(tokens, lesson.documents)) > TOKENS:
            told = f"The documents of line {number} have more than {TOKENS:,} tokens."
            raise LessonsError(told, "Put the stretches that matter in their place.")
        found.append(Lesson(lesson.documents, lesson.questions[:TOGETHER]))
    if not found:
        raise LessonsError("There is no lesson in the file.", "Choose another.")
    return found
