"""Questions put to a memory: what is answered from it alone, and how much of what is right it would have said.

In: a memory model, questions with the slots of the documents, answers and the sentence that holds one (both may be
unknown). Out: `Told`. With several weights side by side it shows what a training did to these very questions.

    answer_tokens     share of the tokens of the answer that are the top prediction after the memory, the question and
                      the tokens before (as `memory_only` asks)
    evidence_tokens   the same of the sentence, asked for as a quotation is recalled (`memo.clues`)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from memo.answers import memory_prompt
from memo.attention import Slots
from memo.evaluate.metrics import f1
from memo.generate import LocalGenerator
from memo.memory import MemoryModel, inference
from memo.train import sft
from memo.train.lessons import Asked, Lesson
from memo.train.pretrain import behind
from memo.train.recipe import Tuning

KINDS = {"answer": "answer_tokens", "span": "evidence_tokens"}


@dataclass(frozen=True)
class Put:
    """A question, and the slots it is put to. answers, sentence: empty where none are known."""

    slots: Slots
    question: str
    answers: tuple[str, ...] = ()
    sentence: str = ""


@dataclass(frozen=True)
class Told:
    """Measures are None where nothing is known to measure by."""

    answer: str
    f1: float | None = None
    answer_tokens: float | None = None
    evidence_tokens: float | None = None


def ask(
    reader: MemoryModel, every: Sequence[Put], tokens: int, told: Callable[[int], None] = lambda done: None
) -> list[Told]:
    """Asks all in one batch. tokens: of an answer at most. told: hears how many are answered; may raise to end it."""
    run = LocalGenerator(reader, "memory").open()
    streams = [run.add(memory_prompt(one.question, tokens, one.slots)) for one in every]
    while run.step():
        told(sum(stream.done for stream in streams))
    run.close()
    found = []
    for one, stream in zip(every, streams, strict=True):
        if stream.error:
            raise stream.error
        said, measures = stream.text.strip(), {}
        if one.answers:
            language = "ko" if re.search("[가-힣]", "".join(one.answers)) else "en"
            measures = {"f1": f1(said, one.answers, language), **recalled(reader, one)}
        found.append(Told(said, **measures))
    return found


def recalled(reader: MemoryModel, one: Put) -> dict[str, float]:
    """The shares of tokens, see above; without a sentence that of the answer alone."""
    asked = Asked(one.question, one.answers, (), {"span": (one.sentence,)} if one.sentence else {})
    targets = sft.Encoder(reader, Tuning.most).targets(Lesson((), (asked,)))
    rows = [torch.tensor([target.prompt + target.ids], device=reader.device) for target in targets]
    found = {}
    with inference(reader):
        hidden = behind(reader, one.slots, [row[:, :-1] for row in rows])
        for target, row, states in zip(targets, rows, hidden, strict=True):
            first = len(target.prompt)
            hits = reader.logits(states[0, first - 1 :]).argmax(dim=-1) == row[0, first:]
            found[KINDS[target.kind]] = hits.float().mean().item()
    return found
